"""Checks of each setting, made before anything slow is imported; no torch here."""

import math
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sparsereg.commands.checks import check_finetuning, check_gates
from sparsereg.errors import UserError
from sparsereg.files import check_checkpoint_file

COSTS = ("channels", "params", "macs", "weights")
ACTIVATIONS = ("relu", "leakyrelu", "gelu", "tanh")
SAMPLING = ("per_sample", "per_batch")
LIBRARIES = ("sparsereg", "torchvision", "timm")
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
MISSING = object()


def is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not is_bool(value) and math.isfinite(value)


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not is_bool(value) and value >= 1


def is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def is_list_of(check: Callable[[Any], bool], value: Any) -> bool:
    return OmegaConf.is_list(value) and all(check(item) for item in value)


def by_layer(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A check of one value, or of that for each of some patterns of layer names."""

    def check_all(value: Any) -> bool:
        if not OmegaConf.is_dict(value):
            return check(value)
        return len(value) > 0 and all(map(check, value.values()))

    return check_all


def is_batch_limit(value: Any) -> bool:
    return value is None or is_count(value) or (is_number(value) and 0 < value <= 1)


def is_bool_or_null(value: Any) -> bool:
    return value is None or is_bool(value)


class OneOf(tuple):
    """A check that the value is one of a few names."""

    def __call__(self, value: Any) -> bool:
        return value in self


GROUP_NEEDED = (lambda v: v is not None, "left as it is")
BOOL = (is_bool, "true or false")
BOOL_OR_NULL = (is_bool_or_null, "true, false or null")
COUNT = (is_count, "a whole number of at least 1")
COUNT_OR_0 = (lambda v: v == 0 or is_count(v), "a whole number of at least 0")
POSITIVE = (is_positive, "a positive number")
POSITIVE_OR_NULL = (lambda v: v is None or is_positive(v), "a positive number, or null")
NOT_NEGATIVE = (lambda v: is_number(v) and v >= 0, "a number of at least 0")
NOT_NEGATIVE_OR_NULL = (
    lambda v: v is None or (is_number(v) and v >= 0),
    "a number of at least 0, or null",
)
INSIDE_0_1 = (lambda v: is_number(v) and 0 < v < 1, "above 0 and below 1")
SEED = (lambda v: v == 0 or (is_count(v) and v < 2**32), "a whole number from 0 to 4294967295")
TEXT = (is_text, "a path")
TEXT_OR_NULL = (lambda v: v is None or is_text(v), "a path, or null")
PATTERNS = (lambda v: is_text(v) or is_list_of(is_text, v), "names of layers, with * and ?")
LIMIT = (is_batch_limit, "a number of batches, a share in (0, 1], or null")

CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {  # key: check, what is wanted
    "ckpt_path": TEXT_OR_NULL,
    "resume_training": BOOL,
    "without_using_gate": BOOL,
    "lambda_l0": (by_layer(NOT_NEGATIVE[0]), "a number of at least 0, or {layers: number, …}"),
    "lambda_warmup": NOT_NEGATIVE,
    "cost": (OneOf(COSTS), "one of " + ", ".join(COSTS)),
    "target_sparsity": (
        lambda v: v is None or by_layer(INSIDE_0_1[0])(v),
        "above 0 and below 1 (0.6 is 60 % less), {layers: such a number, …}, or null",
    ),
    "target_warmup": NOT_NEGATIVE_OR_NULL,
    "settle_epochs": NOT_NEGATIVE_OR_NULL,
    "dual_lr": POSITIVE_OR_NULL,
    "min_open_channels": COUNT_OR_0,
    "gate_reductions": BOOL,
    "keep_gates": BOOL,
    "droprate_init": INSIDE_0_1,
    "gate_lr": POSITIVE_OR_NULL,
    "loga_bounds": (
        lambda v: v is None or (is_list_of(is_number, v) and len(v) == 2 and v[0] < v[1]),
        "two numbers [low, high] with low < high, or null",
    ),
    "finetune_epochs": COUNT_OR_0,
    "finetune_lr": POSITIVE_OR_NULL,
    "round_to": COUNT,
    "seed": SEED,
    "flip_tta": BOOL,
    "output_dir": TEXT,
    "skip_finished": BOOL,
    "compile": BOOL,
    "matmul_precision": (OneOf(("highest", "high", "medium")), "highest, high or medium"),
    "model.act_fn_name": (OneOf(ACTIVATIONS), "one of " + ", ".join(ACTIVATIONS)),
    "model.without_using_gate": BOOL,
    "model.gate_reductions": BOOL,
    "model.droprate_init": INSIDE_0_1,
    "model.temperature": (lambda v: is_number(v) and 0 < v <= 1, "above 0 and at most 1"),
    "model.sampling": (OneOf(SAMPLING), "one of " + ", ".join(SAMPLING)),
    "model.library": (OneOf(LIBRARIES), "one of " + ", ".join(LIBRARIES)),
    "model.name": (is_text, "the name of a network"),
    "model.pretrained": TEXT_OR_NULL,
    "model.include": PATTERNS,
    "model.exclude": PATTERNS,
    "model.gate_inputs": PATTERNS,
    "data.root": TEXT,
    "data.cache_dir": TEXT_OR_NULL,
    "data.name": (OneOf(("cifar10", "cifar100")), "cifar10 or cifar100"),
    "data.image_size": COUNT,
    "data.val_fraction": INSIDE_0_1,
    "data.batch_size": COUNT,
    "data.eval_batch_size": COUNT,
    "data.seed": SEED,
    "data.flip": BOOL,
    "data.crop_padding": COUNT_OR_0,
    "data.cutout": COUNT_OR_0,
    "loss.label_smoothing": (lambda v: is_number(v) and 0 <= v < 1, "from 0 to below 1"),
    "loss.teacher": TEXT_OR_NULL,
    "loss.teacher_weight": (lambda v: is_number(v) and 0 < v <= 1, "above 0 and at most 1"),
    "loss.teacher_temperature": POSITIVE,
    "optimizer.lr": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.betas": (
        lambda v: is_list_of(lambda b: is_number(b) and 0 <= b < 1, v) and len(v) == 2,
        "two numbers from 0 to below 1",
    ),
    "optimizer.momentum": (lambda v: is_number(v) and 0 <= v < 1, "from 0 to below 1"),
    "optimizer.nesterov": BOOL,
    "optimizer.fused": BOOL_OR_NULL,
    "scheduler.milestones": (lambda v: is_list_of(is_count, v), "a list of epochs, like [100,150]"),
    "scheduler.gamma": POSITIVE,
    "scheduler.pct_start": INSIDE_0_1,
    "scheduler.div_factor": POSITIVE,
    "scheduler.final_div_factor": POSITIVE,
    "trainer.max_epochs": COUNT,
    "trainer.accelerator": (OneOf(ACCELERATORS), "one of " + ", ".join(ACCELERATORS)),
    "trainer.strategy": (OneOf(("auto", "ddp")), "auto or ddp"),
    "trainer.num_nodes": COUNT,
    "trainer.precision": (OneOf(PRECISIONS), "one of " + ", ".join(PRECISIONS)),
    "trainer.gradient_clip_val": (lambda v: v is None or is_positive(v), "positive, or null"),
    "trainer.accumulate_grad_batches": COUNT,
    "trainer.check_val_every_n_epoch": COUNT,
    "trainer.log_every_n_steps": COUNT,
    "trainer.limit_train_batches": LIMIT,
    "trainer.limit_val_batches": LIMIT,
    "trainer.limit_test_batches": LIMIT,
    "trainer.num_sanity_val_steps": (lambda v: v == 0 or is_count(v), "a number of batches"),
    "trainer.enable_progress_bar": BOOL,
    "trainer.enable_model_summary": BOOL,
    "trainer.detect_anomaly": BOOL,
    "trainer.benchmark": BOOL_OR_NULL,
    "trainer.deterministic": BOOL_OR_NULL,
    "trainer.use_distributed_sampler": (lambda v: v is False, "false"),
    "trainer.profiler": (OneOf((None, "simple", "advanced")), "simple, advanced or null"),
    "callbacks.checkpoints": GROUP_NEEDED,
    "callbacks.checkpoints.evaluate": (OneOf(("best", "last")), "best or last"),
    "callbacks.finite_weights": GROUP_NEEDED,
    "callbacks.epoch_seed": GROUP_NEEDED,
    "callbacks.average_weights.decay": INSIDE_0_1,
}


def check_settings(cfg: DictConfig) -> None:
    """Raise UserError for the first setting that cannot be meant so."""
    for key, (check, wanted) in CHECKS.items():
        value = OmegaConf.select(cfg, key, default=MISSING)
        if value is not MISSING and not check(value):  # not every option has every key
            shown = "null" if value is None else value
            raise UserError(f"{key}={shown} must be {wanted}")
    every, epochs = cfg.trainer.check_val_every_n_epoch, cfg.trainer.max_epochs
    if every > epochs:
        raise UserError(
            f"trainer.check_val_every_n_epoch={every} must be at most trainer.max_epochs={epochs}: "
            "without validation there is no best.ckpt"
        )
    check_finetuning(cfg)
    check_gates(cfg)
    if cfg.loss.teacher is not None:
        check_checkpoint_file(cfg.loss.teacher, "loss.teacher")
    check_trackers(cfg)
    if cfg.compile:
        check_compiler()
    if cfg.ckpt_path is not None:
        check_checkpoint_file(cfg.ckpt_path)
    elif cfg.resume_training:
        raise UserError(
            "resume_training=true needs ckpt_path=…/last.ckpt, the checkpoint to go on from"
        )


def check_trackers(cfg: DictConfig) -> None:
    for name in ("wandb", "mlflow"):
        if cfg.logger.get(name) is not None and find_spec(name) is None:
            raise UserError(f"logger={name} needs: pip install -r requirements-trackers.txt")


def check_compiler() -> None:
    """torch.compile writes C++, on a GPU too for what surrounds its kernels."""
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise UserError("compile=true needs a C++ compiler: install g++ or clang++")


def to_plain(cfg: DictConfig) -> dict:
    """The configuration as plain, resolved Python types."""
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
