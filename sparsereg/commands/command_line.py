"""How the commands start and stop: one line for a user's mistake, a traceback for a bug."""

import difflib
import errno
import logging
import os
import re
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sparsereg.commands.memory import keep_buffers
from sparsereg.commands.sweep import stop_jobs
from sparsereg.errors import UserError

CONFIG = Path(__file__).parents[1] / "config"
FLAGS = ("--multirun", "-m", "--help", "-h", "--hydra-help", "--version")
SWEEP_PLUGINS = ["joblib", "submitit_local", "submitit_slurm", "optuna"]
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Stopped(BaseException):
    """Ctrl-C or SIGTERM. Not an Exception, so that nothing swallows it."""

    def __init__(self, signum: int):
        self.signum = signum


def stop(signum: int, frame) -> None:
    for s in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not disturb the shutdown
        signal.signal(s, signal.SIG_IGN)
    raise Stopped(signum)


def stop_on_signals() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)


def run(task: Callable[[DictConfig], Any], config_name: str = "train") -> None:
    """Run `task(cfg)` with sparsereg/config/CONFIG_NAME.yaml as the command line changes it.

    Exit codes: 0, 1 after an error, 128 + number of the signal that stopped the run.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise to us instead of printing
    stop_on_signals()
    quieten()
    keep_buffers()
    failed = []

    def fail(message: str) -> None:
        if message in failed:
            return
        failed.append(message)
        rank = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_PROCID", "0"))
        if rank == "0":  # once for all processes of a run
            print(f"error: {message}", file=sys.stderr, flush=True)

    def job(cfg: DictConfig) -> Any:
        if HydraConfig.get().mode == RunMode.MULTIRUN:  # perhaps in a process of its own
            stop_on_signals()
            quieten()
        try:
            return task(cfg)
        except Exception as error:
            is_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
            message = explain(error, config_name)
            if message is not None:
                fail(message)
            elif is_sweep:
                traceback.print_exc()
            if message is None or is_sweep:
                raise  # in a sweep the other jobs go on, see sweep.py

    try:
        check_arguments(sys.argv[1:], config_name)
        hydra.main(version_base="1.3", config_path=str(CONFIG), config_name=config_name)(job)()
    except Stopped as stopped:
        stop_jobs()
        sys.exit(128 + stopped.signum)
    except Exception as error:
        message = explain(error, config_name)
        if message is None:
            raise
        fail(message)
    if failed:
        sys.exit(1)


def as_argument(path: Path) -> str:
    """`ckpt_path=…` as it can be typed, whatever characters the path has."""
    if re.fullmatch(r"[\w./~-]+", str(path)):
        return f"ckpt_path={path}"
    return shlex.quote(f'ckpt_path="{path}"')


def quieten() -> None:
    """Hide what every run would say and no user can act on."""
    for package in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(f"{package}.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        r".*LeafSpec.*",  # Lightning's own use of a deprecated torch name
        r".*Experiment logs directory .* exists and is not empty.*",  # the folder is claimed first
        r".*number of training batches .* smaller than the logging interval.*",
    ):
        warnings.filterwarnings("ignore", message=message)


def explain(error: BaseException, config_name: str) -> str | None:
    """One line for a user's mistake; None for a bug."""
    while isinstance(error, InstantiationException) and error.__cause__:
        error = error.__cause__
    if isinstance(error, UserError):
        return str(error)
    if type(error).__name__ == "MisconfigurationException":  # Lightning's, without its import
        return "trainer: " + " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return f"{error.strerror}: {error.filename or 'output_dir'}; free some space"
    if isinstance(error, OverrideParseException):
        quoted = "KEY='\"VALUE\"'"
        return f"cannot read '{error.override}': quote a value with special characters, {quoted}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return explain_override(str(error), config_name)
    return None


def explain_override(text: str, config_name: str) -> str:
    """Hydra's message about an override, with the setting that was probably meant."""
    if match := re.search(r"Could not override '([^']*)'", text):
        return f"unknown setting '{match[1]}'" + did_you_mean(match[1], known_settings(config_name))
    if match := re.search(r"Could not (?:find|load) '([^']*)/([^']*)'", text):
        group, option = match.groups()
        if option in SWEEP_PLUGINS:
            return f"{group}={option} needs: pip install -r requirements-sweeps.txt"
        options = sorted(path.stem for path in (CONFIG / group).glob("*.yaml"))
        options += SWEEP_PLUGINS if group.startswith("hydra/") else []
        unknown = f"unknown option {group}={option}"
        return f"{unknown}{did_you_mean(option, options)} (there are: {', '.join(options)})"
    if match := re.search(r"[Mm]issing mandatory value: (\S+)", text):
        return f"{match[1]}=… is needed"
    return " ".join(text.split())


def did_you_mean(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, [k for k in known if k != word], n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def known_settings(config_name: str) -> list[str]:
    """Every key that can be set with the default choice of groups, or another model, and the groups
    themselves."""
    if GlobalHydra.instance().is_initialized():
        cfg = hydra.compose(config_name)
    else:
        with hydra.initialize_config_dir(str(CONFIG), version_base="1.3"):
            cfg = hydra.compose(config_name)
    names: list[str] = []

    def walk(node: DictConfig, prefix: str) -> None:
        for key in node:
            names.append(f"{prefix}{key}")
            child = node._get_node(key)
            if OmegaConf.is_dict(child) and not child._is_none():
                walk(child, f"{prefix}{key}.")

    walk(cfg, "")
    if config_name == "train":
        names += [path.name for path in CONFIG.iterdir() if path.is_dir()]
        for path in (CONFIG / "model").glob("*.yaml"):
            walk(OmegaConf.load(path), "model.")
    return names


def check_arguments(arguments: list[str], config_name: str) -> None:
    """Refuse what Hydra would take without a word (`+misspelt=1`), or answer with a traceback."""
    remaining = iter(arguments)
    for argument in remaining:
        if argument in ("--cfg", "-c"):
            next(remaining, None)  # job, hydra or all
            continue
        key, equals, value = argument.lstrip("+~").partition("=")
        if argument.startswith("-"):
            if argument not in FLAGS:
                raise UserError(f"unknown option {argument}; settings are written KEY=VALUE")
            continue
        if not key or not equals:
            raise UserError(f"'{argument}' is not a setting; write KEY=VALUE")
        if argument.startswith(("+", "~")):
            known = known_settings(config_name)
            hint = f"; write '{key}=…'" if key in known else did_you_mean(key, known)
            raise UserError(f"'{argument}': settings cannot be added or removed{hint}")
        if value == "null" and (CONFIG / key).is_dir():
            options = ", ".join(sorted(path.stem for path in (CONFIG / key).glob("*.yaml")))
            raise UserError(f"{argument}: leave it out, or choose one of {options}")
