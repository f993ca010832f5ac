"""Checks of the settings, made before anything slow is imported; no torch here."""

import math
import os
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sparsereg.checkpoint_file import check_checkpoint_file
from sparsereg.errors import UserError

ACTIVATIONS = ("relu", "leakyrelu", "gelu", "tanh")
SAMPLING = ("per_sample", "per_batch")


def is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not is_bool(value) and math.isfinite(value)


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not is_bool(value) and value >= 1


def is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


CHECKS: list[tuple[str, Callable[[Any], bool], str]] = [  # key, check, what is wanted
    ("resume_training", is_bool, "true or false"),
    ("without_using_gate", is_bool, "true or false"),
    ("lambda_l0", lambda v: is_number(v) and v >= 0, "a number of at least 0"),
    (
        "droprate_init",
        lambda v: is_number(v) and 0 < v < 1,
        "above 0 and below 1",
    ),
    ("gate_lr", lambda v: v is None or is_positive(v), "a positive number, or null"),
    (
        "seed",
        lambda v: isinstance(v, int) and not is_bool(v) and 0 <= v < 2**32,
        "a whole number from 0 to 4294967295",
    ),
    ("output_dir", lambda v: isinstance(v, str) and v != "", "a folder"),
    ("matmul_precision", lambda v: v in ("highest", "high", "medium"), "highest, high or medium"),
    ("model.act_fn_name", lambda v: v in ACTIVATIONS, "one of " + ", ".join(ACTIVATIONS)),
    ("model.temperature", lambda v: is_number(v) and 0 < v <= 1, "above 0 and at most 1"),
    ("model.sampling", lambda v: v in SAMPLING, "one of " + ", ".join(SAMPLING)),
    ("data.batch_size", is_count, "a whole number of at least 1"),
    ("optimizer.lr", is_positive, "a positive number"),
    (
        "optimizer.weight_decay",
        lambda v: is_number(v) and v >= 0,
        "a number of at least 0",
    ),
    ("trainer.max_epochs", is_count, "a whole number of at least 1"),
]


def check_settings(cfg: DictConfig) -> None:
    """Raise UserError for the first setting that cannot be meant so."""
    for key, check, wanted in CHECKS:
        value = OmegaConf.select(cfg, key, default="nothing")
        if not check(value):
            raise UserError(f"{key}={value} must be {wanted}")
    if cfg.ckpt_path is not None:
        check_checkpoint_file(cfg.ckpt_path)
    elif cfg.resume_training:
        raise UserError(
            "resume_training=true needs ckpt_path=…/last.ckpt, the checkpoint to go on from"
        )


def check_devices(trainer: DictConfig) -> None:
    """Raise UserError when a GPU, or more devices than there are, is asked for."""
    accelerator, devices = trainer.accelerator, trainer.devices
    if accelerator not in ("auto", "cpu", "gpu", "cuda", "mps"):
        raise UserError(f"trainer.accelerator={accelerator} must be auto, cpu, gpu, cuda or mps")
    available = os.cpu_count() if accelerator == "cpu" else count_gpus(accelerator)
    if available == 0:
        if accelerator != "auto":
            raise UserError(
                f"trainer.accelerator={accelerator}, but torch sees no GPU here: "
                "use trainer=cpu, or add trainer.accelerator=cpu"
            )
        available = os.cpu_count()
    asked = len(devices) if OmegaConf.is_list(devices) else devices
    if asked in ("auto", "-1", -1):
        return
    if isinstance(asked, str) and asked.isdigit():
        asked = int(asked)
    if not is_count(asked):
        raise UserError(f"trainer.devices={devices} must be a whole number of at least 1, or auto")
    if asked > available:
        raise UserError(f"trainer.devices={devices}: this machine has {available}")


def count_gpus(accelerator: str) -> int:
    import torch

    if torch.backends.mps.is_available() and accelerator != "cuda":
        return 1
    return torch.cuda.device_count()


def to_plain(cfg: DictConfig) -> dict:
    """The configuration as plain, resolved Python types."""
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
