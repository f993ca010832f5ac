"""The one door of checks: `check_settings`, which every command passes before anything slow is
imported. Each value alone is checked by its row in `settings`; here they are checked together."""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sparsereg.choices import SETTLED
from sparsereg.commands.machine import check_compiler, check_exporter, check_trackers
from sparsereg.commands.overrides import key_of
from sparsereg.commands.settings import (
    BUDGETS,
    SETTINGS,
    Role,
    budget_of,
    settings_that_need,
    settings_with,
)
from sparsereg.errors import UserError
from sparsereg.files import check_checkpoint_file

MISSING = object()


def check_settings(cfg: DictConfig, overrides: list[str], complete: bool = True) -> None:
    """Raise UserError for the first setting that cannot be meant so.

    Args:
        cfg: the settings of a command.
        overrides: what was typed of them.
        complete: false where a checkpoint's settings are yet to come, or are none of the command's.
    """
    check_values(cfg)
    if "trainer" not in cfg:  # those of report.py
        return
    check_validation(cfg)
    check_clipping(cfg)
    check_finetuning(cfg)
    check_gates(cfg)
    check_latency(cfg)
    if complete:
        check_target(cfg, overrides)
        check_needs(cfg, overrides)
    if cfg.loss.teacher is not None:
        check_checkpoint_file(cfg.loss.teacher, "loss.teacher")
    check_trackers(cfg)
    if cfg.compile:
        check_compiler()
    check_start(cfg)


def check_values(cfg: DictConfig) -> None:
    """Each setting by itself; not every option of a group has every key."""
    for key, (check, wanted, *_) in SETTINGS.items():
        for name, value in matching(cfg, key):
            if not check(value):
                shown = "null" if value is None else value
                raise UserError(f"{name}={shown} must be {wanted}")


def matching(cfg: DictConfig, key: str) -> Iterator[tuple[str, Any]]:
    """The settings, with their values, that a key of the table stands for."""
    group, wildcard, _ = key.partition(".*")
    value = OmegaConf.select(cfg, group, default=MISSING)
    if not wildcard:
        if value is not MISSING:
            yield key, value
    elif OmegaConf.is_dict(value):
        yield from ((f"{group}.{name}", setting) for name, setting in value.items())


def check_validation(cfg: DictConfig) -> None:
    every, epochs = cfg.trainer.check_val_every_n_epoch, cfg.trainer.max_epochs
    if every > epochs:
        raise UserError(
            f"trainer.check_val_every_n_epoch={every} must be at most trainer.max_epochs={epochs}: "
            "without validation there is no best.ckpt"
        )


def check_clipping(cfg: DictConfig) -> None:
    """In half precision gradients are scaled, and a fused optimizer knows that too late."""
    trainer = cfg.trainer
    if trainer.gradient_clip_val and trainer.precision == "16-mixed" and cfg.optimizer.get("fused"):
        raise UserError(
            f"trainer.gradient_clip_val={trainer.gradient_clip_val} with 16-mixed needs "
            "optimizer.fused=false; or use trainer.precision=bf16-mixed"
        )


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


def check_needs(cfg: DictConfig, overrides: list[str]) -> None:
    """What is typed has an effect."""
    for override in overrides:
        key = key_of(override)
        row = SETTINGS.get(key)
        if row is None or not is_asked(key, OmegaConf.select(cfg, key)):
            continue
        if Role.OF_GATES in row.roles and cfg.without_using_gate:
            raise UserError(f"{override} needs gates: without_using_gate=false")
        if Role.OF_FILES in row.roles:
            raise UserError(f"{override}: compact.py takes it, for the files that it writes")
        has = budget_of(cfg) if row.needs in BUDGETS else OmegaConf.select(cfg, row.needs)
        if row.needs and not has:
            raise UserError(f"{override} needs {row.needs}=…")


def is_asked(key: str, value: Any) -> bool:
    """Null, false and 0 ask for nothing; but a budget of 0 is one."""
    return value is not None if key in BUDGETS else bool(value)


def check_gates(cfg: DictConfig) -> None:
    """Settings of gates need gates."""
    for key in settings_with(Role.NEEDS_GATES):
        if is_asked(key, cfg[key]) and cfg.without_using_gate:
            raise UserError(f"{key}={str(cfg[key]).lower()} needs gates: without_using_gate=false")
    if cfg.model.without_using_gate != cfg.without_using_gate:
        raise UserError(
            f"model.without_using_gate={str(cfg.model.without_using_gate).lower()} contradicts "
            f"without_using_gate={str(cfg.without_using_gate).lower()}: set that one alone"
        )
    if cfg.gate_reductions and "gate_reductions" not in cfg.model:
        raise UserError(
            "gate_reductions=true: this model has no such setting; model.include and model.exclude "
            "say where its gates are"
        )
    if cfg.keep_gates and cfg.ckpt_path is None:
        raise UserError("keep_gates=true needs ckpt_path=…, the checkpoint whose gates to keep")


def check_target(cfg: DictConfig, overrides: list[str]) -> None:
    """Raise UserError for settings that contradict a target, or that need one."""
    given = {key_of(override): override for override in overrides}
    if cfg.keep_gates and "droprate_init" in given:
        raise UserError(
            f"{given['droprate_init']} is where new gates start, but keep_gates=true takes the "
            "checkpoint's: leave one of them out"
        )
    key = budget_of(cfg)
    if key is None:
        for key in settings_that_need("target_sparsity"):
            if cfg[key] is not None:
                raise UserError(f"{key}={cfg[key]} needs target_sparsity=…")
        return
    target = f"{key}={cfg[key]}"
    check_one_budget(cfg, given, key)
    if key == "max_drop":
        check_drop(cfg)
    if "lambda_l0" in given:
        raise UserError(
            f"{given['lambda_l0']} is set by hand, but {target} moves λ itself: leave one of them "
            "out"
        )
    excluded = {
        "lambda_warmup": (cfg.lambda_warmup > 0, "is for a λ set by hand; use target_warmup"),
        "min_open_channels": (cfg.min_open_channels < 1, "lets blocks close altogether"),
        "round_to": (not may_round(cfg), "puts closed channels back, and would miss it"),
    }
    for key, (is_set, why) in excluded.items():
        if is_set:
            raise UserError(f"{key}={cfg[key]} with {target}: it {why}")
    check_time_to_settle(cfg)


def check_one_budget(cfg: DictConfig, given: dict[str, str], key: str) -> None:
    """A budget excludes every other, and what it counts is not another cost."""
    for other in BUDGETS:
        if other != key and cfg[other] is not None:
            raise UserError(f"{key}={cfg[key]} and {other}={cfg[other]}: ask for one of them")
    counted = BUDGETS[key]
    if counted is not None and "cost" in given and cfg.cost != counted:
        raise UserError(f"{given['cost']}: {key}={cfg[key]} counts {counted}; leave cost=… out")


def check_drop(cfg: DictConfig) -> None:
    """Something to compare with, and a size that can be bisected."""
    if cfg.ckpt_path is None:
        raise UserError(
            f"max_drop={cfg.max_drop} needs ckpt_path=…, the dense network's checkpoint"
        )
    if cfg.cost == "latency" or cfg.keep_gates:
        raise UserError(
            f"max_drop={cfg.max_drop} looks for the smallest by cost=channels, params, macs or "
            "weights, from new gates: leave cost=latency and keep_gates=true out"
        )


def may_round(cfg: DictConfig) -> bool:
    """Channels that are put back add no time where they fill vectors, but parameters."""
    is_timed = BUDGETS.get(budget_of(cfg)) == "latency"
    return cfg.round_to == 1 or (cfg.round_to == "auto" and is_timed)


def check_latency(cfg: DictConfig) -> None:
    """What measures is there, and one process decides by it."""
    several, is_dropping = OmegaConf.is_list(cfg.target_sparsity), cfg.max_drop is not None
    is_timed = BUDGETS.get(budget_of(cfg)) == "latency" or cfg.cost == "latency"
    is_measured = is_timed or several or cfg.round_to == "auto"
    if is_measured and cfg.latency.backend == "onnxruntime":
        check_exporter("latency.backend=onnxruntime")
    alone = cfg.trainer.devices in (1, "1") and cfg.trainer.num_nodes == 1
    if (is_measured or is_dropping) and not alone:
        raise UserError(
            f"trainer.devices={cfg.trainer.devices}: with {budget_of(cfg) or 'round_to=auto'} one "
            "process decides, trainer.devices=1"
        )


def check_time_to_settle(cfg: DictConfig) -> None:
    """The target must have risen before the gates settle, and an epoch be validated after that."""
    epochs, every = cfg.trainer.max_epochs, cfg.trainer.check_val_every_n_epoch
    if OmegaConf.is_list(cfg.target_sparsity):
        epochs = -(-epochs // len(cfg.target_sparsity))  # for each
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


def check_start(cfg: DictConfig) -> None:
    """The file to start from is there, and whole."""
    if cfg.ckpt_path is not None:
        check_checkpoint_file(cfg.ckpt_path)
    elif cfg.resume_training:
        raise UserError(
            "resume_training=true needs ckpt_path=…/last.ckpt, the checkpoint to go on from"
        )
