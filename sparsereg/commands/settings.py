"""ONE table of settings: what each must be, in which words, and its roles. No torch here.

A new setting is one row; every list of settings that the code needs is derived from the roles.
"""

from collections.abc import Mapping
from enum import Flag, auto
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from sparsereg import choices
from sparsereg.commands import values as v


class Role(Flag):
    """What a setting means to the commands, beside its effect."""

    NONE = 0
    STARTS = auto()  # what starts this run only: no other run repeats it
    KEPT = auto()  # a resumed run keeps it
    OF_GATES = auto()  # without meaning when there are no gates
    NEEDS_GATES = auto()  # asks for something that only gates can do
    UNSEEN = auto()  # what a run shows and where things lie: no column of a report
    NO_EFFECT = auto()  # leaves the result as it is: runs that differ in it are the same
    PATH = auto()  # the same file or folder, however it is written
    MACHINE = auto()  # where things lie, are logged or sent, and devices: never from a file
    BY_LAYER = auto()  # one value for all layers, or {pattern of names: value}
    OF_FILES = auto()  # of the files that compact.py writes: without meaning in training
    AGAIN = auto()  # the same, and the result depends on it: a resumed run needs it again


class Setting(NamedTuple):
    check: v.Check
    wanted: str
    roles: Role = Role.NONE
    needs: str = ""  # the setting without which it means nothing


STARTS, KEPT, PATH = Role.STARTS | Role.MACHINE, Role.KEPT, Role.PATH
MACHINE = Role.MACHINE
AGAIN = Role.AGAIN | MACHINE
OF_GATES, BY_LAYER = Role.OF_GATES, Role.BY_LAYER
NEEDS_GATES = Role.NEEDS_GATES | OF_GATES
OF_TARGET = (OF_GATES | KEPT, "target_sparsity")
UNSEEN = Role.UNSEEN
NO_EFFECT = Role.NO_EFFECT | UNSEEN

SETTINGS: dict[str, Setting] = {
    "ckpt_path": Setting(*v.TEXT_OR_NULL, STARTS | PATH | UNSEEN),  # a report says `start`
    "resume_training": Setting(*v.BOOL, STARTS | UNSEEN),
    "without_using_gate": Setting(*v.BOOL, UNSEEN),  # a report says so instead of lambda_l0
    "lambda_l0": Setting(*v.by_layer(v.NOT_NEGATIVE), OF_GATES | BY_LAYER),
    "lambda_warmup": Setting(*v.NOT_NEGATIVE, NEEDS_GATES),
    "cost": Setting(*v.one_of(choices.COSTS), OF_GATES | KEPT),
    "target_sparsity": Setting(
        v.or_null(lambda value: v.is_rising(value) or v.by_layer(v.INSIDE_0_1)[0](value)),
        "above 0 and below 1 (0.6 is 60 % less), {layers: such a number, …}, several that rise "
        "([0.3,0.5,0.7]), or null",
        NEEDS_GATES | KEPT | BY_LAYER,
    ),
    "target_params": Setting(*v.AMOUNT_OR_NULL, NEEDS_GATES | KEPT),
    "target_macs": Setting(*v.AMOUNT_OR_NULL, NEEDS_GATES | KEPT),
    "target_latency": Setting(*v.POSITIVE_OR_NULL, NEEDS_GATES | KEPT),
    "target_speedup": Setting(
        v.or_null(lambda value: v.is_number(value) and value > 1),
        "a number above 1, or null",
        NEEDS_GATES | KEPT,
    ),
    "max_drop": Setting(
        v.or_null(lambda value: v.is_number(value) and 0 <= value < 100),
        "points of accuracy from 0 to below 100, or null",
        NEEDS_GATES | KEPT,
        "ckpt_path",
    ),
    "probes": Setting(*v.COUNT, OF_GATES | NO_EFFECT, "max_drop"),
    "probe_epochs": Setting(*v.COUNT_OR_NULL, OF_GATES | NO_EFFECT, "max_drop"),
    "target_warmup": Setting(*v.NOT_NEGATIVE_OR_NULL, *OF_TARGET),
    "settle_epochs": Setting(*v.NOT_NEGATIVE_OR_NULL, *OF_TARGET),
    "dual_lr": Setting(*v.POSITIVE_OR_NULL, *OF_TARGET),
    "min_open_channels": Setting(*v.COUNT_OR_0, OF_GATES | KEPT),
    "gate_reductions": Setting(*v.BOOL, NEEDS_GATES),
    "keep_gates": Setting(*v.BOOL, NEEDS_GATES, "ckpt_path"),
    "droprate_init": Setting(*v.INSIDE_0_1, OF_GATES),
    "gate_lr": Setting(*v.POSITIVE_OR_NULL, OF_GATES | KEPT),
    "loga_bounds": Setting(
        v.or_null(v.is_interval),
        "two numbers [low, high] with low < high, or null",
        OF_GATES | KEPT,
    ),
    "finetune_epochs": Setting(*v.COUNT_OR_0),
    "finetune_lr": Setting(*v.POSITIVE_OR_NULL, needs="finetune_epochs"),
    "round_to": Setting(
        lambda value: value == "auto" or v.is_count(value),
        "a whole number of at least 1, or auto",
        OF_GATES,
        "finetune_epochs",
    ),
    "int8": Setting(*v.BOOL, Role.OF_FILES | NO_EFFECT),
    "normalise": Setting(
        *v.one_of(choices.NORMALISE, "outside or inside"), Role.OF_FILES | NO_EFFECT
    ),
    "seed": Setting(*v.SEED),
    "flip_tta": Setting(*v.BOOL),
    "output_dir": Setting(*v.TEXT, NO_EFFECT | PATH | MACHINE),
    "skip_finished": Setting(*v.BOOL, NO_EFFECT | MACHINE),
    "compile": Setting(*v.BOOL, MACHINE),
    "wait_for_processes": Setting(*v.POSITIVE, NO_EFFECT | MACHINE),
    "matmul_precision": Setting(
        *v.one_of(("highest", "high", "medium"), "highest, high or medium")
    ),
    "model": Setting(*v.GROUP, KEPT),
    "model.act_fn_name": Setting(*v.one_of(choices.ACTIVATIONS)),
    "model.without_using_gate": Setting(*v.BOOL),
    "model.gate_reductions": Setting(*v.BOOL, OF_GATES),
    "model.gate_stem": Setting(*v.BOOL, OF_GATES),
    "model.droprate_init": Setting(*v.INSIDE_0_1, OF_GATES),
    "model.temperature": Setting(*v.SHARE, OF_GATES),
    "model.sampling": Setting(*v.one_of(choices.SAMPLING), OF_GATES),
    "model.library": Setting(*v.one_of(choices.LIBRARIES)),
    "model.name": Setting(v.is_text, "the name of a network"),
    "model.pretrained": Setting(*v.TEXT_OR_NULL, STARTS | PATH),
    "model.include": Setting(*v.PATTERNS, OF_GATES),
    "model.exclude": Setting(*v.PATTERNS, OF_GATES),
    "model.gate_inputs": Setting(*v.PATTERNS, OF_GATES),
    "model.coupled": Setting(*v.BOOL, OF_GATES),
    "model.behind_barriers": Setting(*v.BOOL, OF_GATES),
    "data": Setting(*v.GROUP),
    "data.root": Setting(*v.TEXT, PATH | UNSEEN | AGAIN),
    "data.cache_dir": Setting(*v.TEXT_OR_NULL, PATH | NO_EFFECT | MACHINE),
    "data.name": Setting(*v.one_of(("cifar10", "cifar100"), "cifar10 or cifar100")),
    "data.image_size": Setting(*v.COUNT),
    "data.val_fraction": Setting(*v.INSIDE_0_1),
    "data.batch_size": Setting(*v.COUNT),
    "data.eval_batch_size": Setting(*v.COUNT, UNSEEN),
    "data.seed": Setting(*v.SEED),
    "data.flip": Setting(*v.BOOL),
    "data.crop_scale": Setting(
        v.or_null(lambda value: v.is_range(value, 1)),
        "null or two numbers [low, high] with 0 < low <= high <= 1",
    ),
    "data.crop_ratio": Setting(
        v.is_range, "two numbers [low, high] with 0 < low <= high", needs="data.crop_scale"
    ),
    "data.crop_padding": Setting(*v.COUNT_OR_0),
    "data.cutout": Setting(*v.COUNT_OR_0),
    "latency.batch": Setting(*v.COUNT, OF_GATES | KEPT),
    "latency.backend": Setting(*v.one_of(choices.BACKENDS), OF_GATES | KEPT),
    "latency.threads": Setting(*v.COUNT, OF_GATES | KEPT),
    "latency.cache_dir": Setting(*v.TEXT, PATH | NO_EFFECT | MACHINE),
    "loss": Setting(*v.GROUP),
    "loss.label_smoothing": Setting(*v.FROM_0_BELOW_1),
    "loss.teacher": Setting(*v.TEXT_OR_NULL, PATH | AGAIN),
    "loss.teacher_weight": Setting(*v.SHARE, needs="loss.teacher"),
    "loss.teacher_temperature": Setting(*v.POSITIVE, needs="loss.teacher"),
    "optimizer": Setting(*v.GROUP, KEPT),
    "optimizer.lr": Setting(*v.POSITIVE),
    "optimizer.weight_decay": Setting(*v.NOT_NEGATIVE),
    "optimizer.betas": Setting(
        lambda value: v.is_list_of(v.FROM_0_BELOW_1[0], value) and len(value) == 2,
        "two numbers from 0 to below 1",
    ),
    "optimizer.momentum": Setting(*v.FROM_0_BELOW_1),
    "optimizer.nesterov": Setting(*v.BOOL),
    "optimizer.fused": Setting(*v.BOOL_OR_NULL),
    "scheduler": Setting(*v.GROUP, KEPT),
    "scheduler.milestones": Setting(
        lambda value: v.is_list_of(v.is_count, value), "a list of epochs, like [100,150]"
    ),
    "scheduler.gamma": Setting(*v.POSITIVE),
    "scheduler.pct_start": Setting(*v.INSIDE_0_1),
    "scheduler.div_factor": Setting(*v.POSITIVE),
    "scheduler.final_div_factor": Setting(*v.POSITIVE),
    "trainer": Setting(*v.GROUP, UNSEEN),
    "trainer.max_epochs": Setting(*v.COUNT),
    "trainer.accelerator": Setting(*v.one_of(choices.ACCELERATORS), MACHINE),
    "trainer.devices": Setting(*v.DEVICES, AGAIN),
    "trainer.num_nodes": Setting(*v.COUNT, AGAIN),
    "trainer.strategy": Setting(*v.one_of(("auto", "ddp"), "auto or ddp"), MACHINE),
    "trainer.precision": Setting(*v.one_of(choices.PRECISIONS)),
    "trainer.gradient_clip_val": Setting(v.or_null(v.is_positive), "positive, or null"),
    "trainer.accumulate_grad_batches": Setting(*v.COUNT),
    "trainer.check_val_every_n_epoch": Setting(*v.COUNT),
    "trainer.log_every_n_steps": Setting(*v.COUNT, NO_EFFECT),
    "trainer.limit_train_batches": Setting(*v.LIMIT),
    "trainer.limit_val_batches": Setting(*v.LIMIT),
    "trainer.limit_test_batches": Setting(*v.LIMIT),
    "trainer.num_sanity_val_steps": Setting(v.is_index, "a number of batches", UNSEEN),
    "trainer.enable_progress_bar": Setting(*v.BOOL, NO_EFFECT),
    "trainer.enable_model_summary": Setting(*v.BOOL, NO_EFFECT),
    "trainer.detect_anomaly": Setting(*v.BOOL, UNSEEN),
    "trainer.benchmark": Setting(*v.BOOL_OR_NULL),
    "trainer.deterministic": Setting(*v.BOOL_OR_NULL),
    "trainer.use_distributed_sampler": Setting(*v.one_of((False,), "false"), UNSEEN),
    "trainer.profiler": Setting(
        *v.one_of((None, "simple", "advanced"), "simple, advanced or null"), NO_EFFECT
    ),
    "callbacks": Setting(*v.GROUP),
    "callbacks.*": Setting(*v.GROUP_OR_NULL, UNSEEN),
    "callbacks.checkpoints": Setting(*v.GROUP, UNSEEN),
    "callbacks.checkpoints.evaluate": Setting(*v.one_of(("best", "last"), "best or last")),
    "callbacks.finite_weights": Setting(*v.GROUP, UNSEEN),
    "callbacks.epoch_seed": Setting(*v.GROUP, UNSEEN),
    "callbacks.epoch_seed.seed": Setting(*v.SEED, UNSEEN),
    "callbacks.learning_rate.logging_interval": Setting(
        *v.one_of(("epoch", "step", None), "epoch, step or null"), UNSEEN
    ),
    "callbacks.average_weights.decay": Setting(*v.INSIDE_0_1),  # a report has it: null, no average
    "logger": Setting(*v.GROUP, MACHINE),
    "logger.*": Setting(*v.GROUP_OR_NULL, NO_EFFECT | MACHINE),
    "logger.csv.flush_logs_every_n_steps": Setting(*v.COUNT, NO_EFFECT | MACHINE),
    "logger.tensorboard.flush_secs": Setting(*v.COUNT, NO_EFFECT | MACHINE),
    "runs": Setting(  # of report.py, as the following
        lambda value: v.is_text(value) or (v.is_list_of(v.is_text, value) and len(value) > 0),
        "a folder, or several: runs=[a,b]",
    ),
    "out": Setting(v.is_text, "a folder"),
    "pictures": Setting(*v.COUNT_OR_0),
    "images": Setting(v.or_null(v.is_text), "an image or a folder"),  # of predict.py
    "csv": Setting(v.is_text, "a file"),
    "results": Setting(v.or_null(v.is_text), "a folder, like docs/results"),
}


BUDGETS = {  # what can be asked for, one at a time: the cost that it counts, if not `cost` says so
    "target_sparsity": None,
    "target_params": "params",
    "target_macs": "macs",
    "target_latency": "latency",
    "target_speedup": "latency",
    "max_drop": None,
}


def budget_of(cfg: Mapping[str, Any]) -> str | None:
    """The setting that asks for a network; None: λ is set by hand."""
    return next((key for key in BUDGETS if cfg.get(key) is not None), None)


def with_cost(cfg: DictConfig) -> DictConfig:
    """The settings with the cost that the budget counts; a resumed run's are in its checkpoint."""
    counted = BUDGETS.get(budget_of(cfg))
    if counted is None or cfg.resume_training:
        return cfg
    return OmegaConf.merge(cfg, {"cost": counted})


def roles_of(key: str) -> Role:
    """The roles of a setting; callbacks and loggers share those of their group's other settings."""
    row = SETTINGS.get(key) or SETTINGS.get(f"{key.partition('.')[0]}.*")
    return row.roles if row else Role.NONE


def settings_with(role: Role) -> list[str]:
    """The settings that have a role, in the order of the table."""
    return [key for key, setting in SETTINGS.items() if role in setting.roles]


def settings_that_need(key: str) -> list[str]:
    """The settings that mean nothing without another."""
    return [name for name, setting in SETTINGS.items() if setting.needs == key]


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as plain, resolved Python types."""
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
