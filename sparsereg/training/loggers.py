"""The loggers of a run: TensorBoard and CSV in its folder, trackers in stores of their own."""

import logging
import os
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from filelock import FileLock
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger

from sparsereg.commands.comparable import network_name, reported_settings
from sparsereg.commands.overrides import default_settings
from sparsereg.commands.settings import to_plain

RUN_NAME = {"wandb": "name", "mlflow": "run_name"}  # what they call "version_N"
STAY_HERE = {"WANDB_ERROR_REPORTING": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
NOTHING_TO_DO = {"MLFLOW_LOGGING_LEVEL": "WARNING"}  # for who would read it
GROUPS = {  # in TensorBoard: the group of what these patterns match
    "train": r"(?:train_)?(loss|ce|acc|lr-.*|epoch|samples/s)",
    "val": r"val_(loss|acc)",
    "gates": r"(lambda_l0.*|expected_sparsity/.*)",
    "size": r"(params|macs|actual_sparsity/.*)",
    "results": r"final/(.*)",  # one point each, which would else come second
}
SETTINGS = (  # of README.md's commands: HParams has them, and what else is not the default
    *("ckpt_path", "resume_training", "without_using_gate", "lambda_l0", "droprate_init"),
    *("target_sparsity", "cost", "data", "model", "seed"),
)


def tag_of(name: str) -> str:
    """Where TensorBoard shows what metrics.csv has as `name`: val_acc is val/acc."""
    for group, pattern in GROUPS.items():
        if match := re.fullmatch(pattern, name):
            return f"{group}/{match[1]}"
    return name


def from_one(metrics: dict[str, float]) -> dict[str, float]:
    """With epochs counted from 1, as everywhere; Lightning counts from 0."""
    return metrics | ({"epoch": metrics["epoch"] + 1} if "epoch" in metrics else {})


class Csv(CSVLogger):
    """Lightning's, with epochs counted from 1."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        super().log_metrics(from_one(metrics), step)


class TensorBoard(pl.loggers.TensorBoardLogger):
    """Lightning's, with its cards in groups, and in the Custom Scalars tab in their order."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        super().log_metrics({tag_of(k): v for k, v in from_one(metrics).items()}, step)

    def lay_out(self, layers: list[str]) -> None:
        """Order the Custom Scalars: accuracy and loss first, open channels last; the Time Series
        are in alphabetical order."""
        blocks = dict.fromkeys(name.partition("/")[0] for name in layers)
        charts = {
            "accuracy and loss": {
                "accuracy": ["train/acc", "val/acc"],
                "loss": ["train/loss", "val/loss", "train/ce"],
            },
            "gates": {
                "L_C0": ["L_C0"],
                "sparsity": ["sparsity"],
                "expected sparsity": ["gates/expected_sparsity/.*"],
                "weight of the cost": ["gates/lambda_l0.*"],
            },
            "size": {"parameters": ["size/params"], "multiply-adds": ["size/macs"]},
            "open channels": {b: [f"open_channels/{re.escape(b)}(/.*)?"] for b in blocks},
        }
        if not layers:
            del charts["gates"], charts["open channels"]
        self.experiment.add_custom_scalars(
            {
                group: {
                    title: ["Multiline", [f"^{t}$" for t in tags]] for title, tags in of.items()
                }
                for group, of in charts.items()
            }
        )


def new_loggers(cfg: DictConfig, version: int) -> list[Logger]:
    """The loggers of run `version`; trackers know its settings from the start."""
    for name, value in (STAY_HERE | NOTHING_TO_DO).items():  # unless the user says otherwise
        os.environ.setdefault(name, value)
    logging.getLogger("pytorch_lightning.loggers.mlflow").setLevel(logging.ERROR)
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
            if isinstance(tracker, WandbLogger):  # Lightning gives an argument that wandb warns of
                tracker._wandb_init.pop("anonymous", None)
            tracker.log_hyperparams(settings_to_log(cfg))
    return loggers


def settings_to_log(cfg: DictConfig) -> dict:
    return {k: v for k, v in to_plain(cfg).items() if k not in ("callbacks", "logger")}


def hparams(cfg: DictConfig) -> dict[str, Any]:
    """For TensorBoard's table of runs: numbers, and words for truth values and what is not set."""
    config, defaults = to_plain(cfg), to_plain(default_settings())
    flat, usual = reported_settings(config), reported_settings(defaults)
    shown = {key: config[key] for key in SETTINGS}
    shown |= {"data": flat["data"], "model": network_name(flat)}
    shown |= {
        k: v for k, v in flat.items() if v != usual.get(k) and k not in (*shown, "model.name")
    }
    return {key: as_hparam(value) for key, value in shown.items()}


def as_hparam(value: Any) -> float | str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return value if isinstance(value, int | float) else str(value)


def trackers(loggers: list[Logger]) -> list[Logger]:
    return [logger for logger in loggers if isinstance(logger, WandbLogger | MLFlowLogger)]


def log_final(loggers: list[Logger], results: dict[str, float]) -> None:
    """Give the trackers a finished run's results, and close their runs."""
    for tracker in trackers(loggers):
        tracker.log_metrics(results)
        tracker.finalize("success")
        if isinstance(tracker, WandbLogger):
            tracker.experiment.finish()
