"""The loggers of a run: TensorBoard and CSV in its folder, trackers in stores of their own."""

import os
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger, MLFlowLogger, WandbLogger

from sparsereg.commands.settings import to_plain

RUN_NAME = {"wandb": "name", "mlflow": "run_name"}  # what they call "version_N"
STAY_HERE = {"WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


def new_loggers(cfg: DictConfig, version: int) -> list[Logger]:
    """The loggers of run `version`; trackers know its settings from the start."""
    for name, value in STAY_HERE.items():  # nothing leaves the machine unless the user says so
        os.environ.setdefault(name, value)
    loggers = []
    lock = FileLock(Path(cfg.output_dir) / "mlflow.lock") if cfg.logger.get("mlflow") else None
    with lock or nullcontext():  # MLflow's tables, which jobs started together would all create
        for name, logger in cfg.logger.items():
            if logger is None:
                continue
            run = {"version": version}
            if name in RUN_NAME:
                run = {RUN_NAME[name]: f"version_{version}"}
            loggers.append(instantiate(logger, **run, _convert_="all"))
        for tracker in trackers(loggers):
            tracker.log_hyperparams(settings_to_log(cfg))
    return loggers


def settings_to_log(cfg: DictConfig) -> dict:
    return {k: v for k, v in to_plain(cfg).items() if k not in ("callbacks", "logger")}


def trackers(loggers: list[Logger]) -> list[Logger]:
    return [logger for logger in loggers if isinstance(logger, WandbLogger | MLFlowLogger)]


def log_final(loggers: list[Logger], results: dict[str, float]) -> None:
    """Give the trackers a finished run's results, and close their runs."""
    for tracker in trackers(loggers):
        tracker.log_metrics(results)
        tracker.finalize("success")
        if isinstance(tracker, WandbLogger):
            tracker.experiment.finish()
