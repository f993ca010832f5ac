"""Checks of the settings, made before anything slow is imported; no torch here."""

import math
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sparsereg.checkpoint_file import check_checkpoint_file
from sparsereg.errors import UserError

COSTS = ("channels", "params", "macs")
TARGET_WARMUP, SETTLED = 0.4, 0.4  # shares of the run, if target_warmup, settle_epochs are null
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
    "lambda_l0": NOT_NEGATIVE,
    "lambda_warmup": NOT_NEGATIVE,
    "cost": (OneOf(COSTS), "one of " + ", ".join(COSTS)),
    "target_sparsity": (
        lambda v: v is None or (is_number(v) and 0 < v < 1),
        "above 0 and below 1 (0.6 is 60 % less), or null",
    ),
    "target_warmup": NOT_NEGATIVE_OR_NULL,
    "settle_epochs": NOT_NEGATIVE_OR_NULL,
    "dual_lr": POSITIVE_OR_NULL,
    "min_open_channels": COUNT_OR_0,
    "gate_reductions": BOOL,
    "keep_gates": BOOL,
    "droprate_init": INSIDE_0_1,
    "gate_lr": POSITIVE_OR_NULL,
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


def check_finetuning(cfg: DictConfig) -> None:
    """What would go wrong after the gated training shows before it."""
    if cfg.finetune_epochs and cfg.without_using_gate:
        raise UserError(
            f"finetune_epochs={cfg.finetune_epochs} trains the network that is cut after training "
            "with gates: use without_using_gate=false"
        )
    if 0 < cfg.finetune_epochs < cfg.trainer.check_val_every_n_epoch:
        raise UserError(
            f"finetune_epochs={cfg.finetune_epochs} must be at least "
            f"trainer.check_val_every_n_epoch={cfg.trainer.check_val_every_n_epoch}"
        )
    if cfg.finetune_lr is not None and not cfg.finetune_epochs:
        raise UserError(f"finetune_lr={cfg.finetune_lr} needs finetune_epochs=…")


def check_gates(cfg: DictConfig) -> None:
    """Settings of gates need gates."""
    needs_gates = {
        "target_sparsity": cfg.target_sparsity is not None,
        "lambda_warmup": cfg.lambda_warmup > 0,
        "gate_reductions": cfg.gate_reductions,
        "keep_gates": cfg.keep_gates,
    }
    for key, is_set in needs_gates.items():
        if is_set and cfg.without_using_gate:
            raise UserError(f"{key}={str(cfg[key]).lower()} needs gates: without_using_gate=false")
    if cfg.gate_reductions and "gate_reductions" not in cfg.model:
        raise UserError(
            "gate_reductions=true: this model has no such setting; model.include and model.exclude "
            "say where its gates are"
        )
    if cfg.keep_gates and cfg.ckpt_path is None:
        raise UserError("keep_gates=true needs ckpt_path=…, the checkpoint whose gates to keep")


def check_target(cfg: DictConfig, overrides: list[str]) -> None:
    """Raise UserError for settings that contradict a target, or that need one."""
    given = {override.partition("=")[0]: override for override in overrides}
    if cfg.keep_gates and "droprate_init" in given:
        raise UserError(
            f"{given['droprate_init']} is where new gates start, but keep_gates=true takes the "
            "checkpoint's: leave one of them out"
        )
    target = cfg.target_sparsity
    if target is None:
        for key in ("target_warmup", "settle_epochs", "dual_lr"):
            if cfg[key] is not None:
                raise UserError(f"{key}={cfg[key]} needs target_sparsity=…")
        return
    if "lambda_l0" in given:
        raise UserError(
            f"{given['lambda_l0']} is set by hand, but target_sparsity={target} moves λ itself: "
            "leave one of them out"
        )
    excluded = {
        "lambda_warmup": (cfg.lambda_warmup > 0, "is for a λ set by hand; use target_warmup"),
        "min_open_channels": (cfg.min_open_channels < 1, "lets blocks close altogether"),
        "round_to": (cfg.round_to > 1, "puts closed channels back, and would miss it"),
    }
    for key, (is_set, why) in excluded.items():
        if is_set:
            raise UserError(f"{key}={cfg[key]} with target_sparsity={target}: it {why}")
    check_time_to_settle(cfg)


def check_time_to_settle(cfg: DictConfig) -> None:
    """The target must have risen before the gates settle, and an epoch be validated after that."""
    epochs, every = cfg.trainer.max_epochs, cfg.trainer.check_val_every_n_epoch
    settle = SETTLED * epochs if cfg.settle_epochs is None else cfg.settle_epochs
    if (cfg.target_warmup or 0) + settle > epochs:
        raise UserError(
            f"target_warmup={cfg.target_warmup} and the last {settle:g} epochs, in which the gates "
            f"are settled (settle_epochs), do not fit into trainer.max_epochs={epochs}"
        )
    last_validated = epochs // every * every
    if last_validated < epochs and last_validated <= epochs - settle:
        raise UserError(
            f"trainer.check_val_every_n_epoch={every} validates none of the last {settle:g} "
            "epochs, in which the gates are settled: best.ckpt would not have the target"
        )


def check_devices(trainer: DictConfig) -> None:
    """Raise UserError when a GPU, or more devices than there are, is asked for."""
    accelerator, devices = trainer.accelerator, trainer.devices
    available = os.cpu_count() if accelerator == "cpu" else count_gpus(accelerator)
    if available == 0:
        if accelerator != "auto":
            raise UserError(
                f"trainer.accelerator={accelerator}, but torch sees no GPU here: "
                "use trainer=cpu, or add trainer.accelerator=cpu"
            )
        available = os.cpu_count()
    on_gpu = accelerator != "cpu" and count_gpus(accelerator) > 0
    asked = len(devices) if on_gpu and OmegaConf.is_list(devices) else devices
    if asked == "auto" or (on_gpu and asked in ("-1", -1)):
        return
    if isinstance(asked, str) and asked.isdigit():
        asked = int(asked)
    if not is_count(asked):
        raise UserError(f"trainer.devices={devices} must be a whole number of at least 1, or auto")
    if asked > available:
        raise UserError(f"trainer.devices={devices}: this machine has {available}")


def check_sweep(trainer: DictConfig) -> None:
    """A second process of a job would start with the command line of the whole sweep."""
    devices = trainer.devices
    one = devices == 1 or (OmegaConf.is_list(devices) and len(devices) == 1)
    started_by_slurm = int(os.environ.get("SLURM_NTASKS", 1)) > 1
    if not one and not started_by_slurm:
        raise UserError(
            f"trainer.devices={devices}: a job of a sweep is one process, use trainer.devices=1 "
            "(hydra/launcher=joblib runs several jobs at once)"
        )


def count_gpus(accelerator: str) -> int:
    import torch

    if torch.backends.mps.is_available() and accelerator != "cuda":
        return 1
    return torch.cuda.device_count()


def to_plain(cfg: DictConfig) -> dict:
    """The configuration as plain, resolved Python types."""
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
