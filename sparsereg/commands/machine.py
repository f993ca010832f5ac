"""Has this machine what is asked for: devices, a compiler, trackers? Torch is imported only to
count GPUs."""

import os
import shutil
from importlib.util import find_spec

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sparsereg.commands.values import is_count
from sparsereg.errors import UserError


def check_devices(trainer: DictConfig) -> None:
    """Raise UserError when a GPU, or more devices than there are, is asked for."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        check_sweep(trainer)
    accelerator, devices = trainer.accelerator, trainer.devices
    available = os.cpu_count() if accelerator == "cpu" else count_gpus(accelerator)
    if available == 0:
        if accelerator != "auto":
            raise UserError(
                f"trainer.accelerator={accelerator}, but torch sees no GPU here: "
                "use trainer=cpu, or add trainer.accelerator=cpu"
            )
        available = os.cpu_count()
    on_gpu = not is_on_cpu(trainer)
    if trainer.precision == "16-mixed" and not on_gpu:
        raise UserError(
            "trainer.precision=16-mixed needs a GPU; on a CPU use bf16-mixed or 32-true"
        )
    asked = len(devices) if on_gpu and OmegaConf.is_list(devices) else devices
    if asked == "auto" or (on_gpu and asked in ("-1", -1)):
        return
    if isinstance(asked, str) and asked.isdigit():
        asked = int(asked)
    if not is_count(asked):
        raise UserError(f"trainer.devices={devices} must be a whole number of at least 1, or auto")
    if asked > available:
        raise UserError(f"trainer.devices={devices}: this machine has {available}")


def is_on_cpu(trainer: DictConfig) -> bool:
    return trainer.accelerator == "cpu" or count_gpus(trainer.accelerator) == 0


def is_first_process() -> bool:
    """The one of a distributed run that speaks."""
    return os.environ.get("LOCAL_RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


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


def check_trackers(cfg: DictConfig) -> None:
    for name in ("wandb", "mlflow"):
        if cfg.logger.get(name) is not None and find_spec(name) is None:
            raise UserError(f"logger={name} needs: pip install -r requirements-trackers.txt")


def check_compiler() -> None:
    """torch.compile writes C++, on a GPU too for what surrounds its kernels."""
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
        raise UserError("compile=true needs a C++ compiler: install g++ or clang++")


def check_exporter(asked: str) -> None:
    """Raise UserError where what was asked for, KEY=VALUE, needs packages that are not there."""
    if not all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))):
        raise UserError(f"{asked} needs: pip install -r requirements-export.txt")
