"""How the commands start and stop: one line for a user's mistake, a traceback for a bug."""

import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from sparsereg.commands.hints import check_arguments, explain
from sparsereg.commands.machine import is_first_process
from sparsereg.commands.memory import keep_buffers
from sparsereg.commands.overrides import CONFIG
from sparsereg.commands.sweep import stop_jobs
from sparsereg.errors import printable
from sparsereg.help import help_text


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


def run(
    task: Callable[[DictConfig], Any], config_name: str = "train", takes: Sequence[str] = ()
) -> None:
    """Run `task(cfg)` with sparsereg/config/CONFIG_NAME.yaml as the command line changes it.

    Exit codes: 0, 1 after an error, 128 + number of the signal that stopped the run.

    Args:
        task: of a script, whose docstring `--help` begins with.
        config_name: the file of its settings.
        takes: the settings and groups that have an effect, if not all of them do.
    """
    if {"-h", "--help"} & {*sys.argv[1:]}:
        print(help_text(sys.modules[task.__module__].__doc__, config_name, takes))
        return
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise to us instead of printing
    stop_on_signals()
    quieten()
    keep_buffers()
    threading.excepthook = on_thread_exception
    failed = []

    def fail(message: str) -> None:
        if message in failed:
            return
        failed.append(message)
        if is_first_process():  # once for all processes of a run
            print(f"error: {printable(message)}", file=sys.stderr, flush=True)

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
        sys.argv[1:] = check_arguments(sys.argv[1:], config_name)
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
        drop_unread_output()
        sys.exit(1)


def on_thread_exception(failure: threading.ExceptHookArgs) -> None:
    """A disk or folder that is gone: the main thread meets it too, and says so in one line."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


def one_line(message: Warning | str, *where: Any, **more: Any) -> str:
    """A warning, without the place in the code that it comes from; once for all processes."""
    return f"warning: {printable(' '.join(str(message).split()))}\n" if is_first_process() else ""


def drop_unread_output() -> None:
    """Without a reader the interpreter would fail at its end, when it writes what is left."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def quieten() -> None:
    """Hide what every run would say and no user can act on; a warning is one line."""
    warnings.formatwarning = one_line
    for package in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(f"{package}.utilities.rank_zero").setLevel(logging.WARNING)
    for message in (
        r".*LeafSpec.*",  # Lightning's own use of a deprecated torch name
        r".*Experiment logs directory .* exists and is not empty.*",  # the folder is claimed first
        r"Error detected in .*Backward",  # detect_anomaly's; the error says it in a line
        r".*number of training batches .* smaller than the logging interval.*",
    ):
        warnings.filterwarnings("ignore", message=message)
