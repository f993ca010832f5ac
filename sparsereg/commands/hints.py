"""What to say to a mistake on the command line: one line, with what was probably meant."""

import difflib
import errno
import re
import traceback
from itertools import zip_longest
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sparsereg.commands.overrides import CONFIG, parse
from sparsereg.commands.values import COUNT, is_count
from sparsereg.errors import UserError

FLAGS_WITH_VALUE = {"--cfg": "job", "-c": "job", "--info": "all", "-i": "all"}
SWEEP_PLUGINS = ["joblib", "submitit_local", "submitit_slurm", "optuna"]
SWEEPER = re.compile("/hydra_plugins/|/core_plugins/basic_sweeper|/core_plugins/basic_launcher")
OPTUNAS = ("hydra.sweeper.n_trials", "hydra.sweeper.n_jobs")  # others are taken without a word
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
GONE = (errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EIO, errno.ESTALE)


def explain(error: BaseException, config_name: str) -> str | None:
    """One line for a user's mistake; None for a bug."""
    while isinstance(error, InstantiationException) and error.__cause__:
        error = error.__cause__
    if isinstance(error, UserError):
        return str(error)
    if type(error).__name__ == "MisconfigurationException":  # Lightning's, without its import
        return "trainer: " + " ".join(str(error).split())
    if isinstance(error, BrokenPipeError):
        return "who reads this output has gone (Broken pipe)"
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return f"{error.strerror}: {error.filename or 'output_dir'}; free some space"
    if isinstance(error, OSError) and error.errno in GONE and error.filename:
        return f"{error.strerror}: {error.filename}; has a folder been moved, or a disk taken away?"
    if isinstance(error, RuntimeError) and "returned nan values" in str(error):
        return f"trainer.detect_anomaly=true: {error} Lower optimizer.lr, gate_lr or lambda_l0"
    if type(error).__name__ in ("DistStoreError", "DistNetworkError"):  # torch's, as above
        return f"not all processes of the distributed run have answered: {error}"
    if is_sweeping(error):
        return f"the sweep cannot start: {type(error).__name__}: {error}"
    if is_restoring(error):
        reason = f"{type(error).__name__}: {error}"
        return f"the training state of the checkpoint cannot be restored ({reason})"
    if isinstance(error, OverrideParseException):
        quoted = "KEY='\"VALUE\"'"
        return f"cannot read '{error.override}': quote a value with special characters, {quoted}"
    if isinstance(error, HydraException | OmegaConfBaseException):
        return explain_override(str(error), config_name)
    return None


def is_restoring(error: BaseException) -> bool:
    """Has Lightning failed at taking over the state that a checkpoint holds?"""
    return any(
        frame.filename.endswith("checkpoint_connector.py")
        and frame.name.lstrip("_").startswith("restore")
        for frame in traceback.extract_tb(error.__traceback__)
    )


def is_sweeping(error: BaseException) -> bool:
    """Has a sweeper or a launcher failed, and none of the jobs?"""
    frames = traceback.extract_tb(error.__traceback__)
    in_plugin = any(SWEEPER.search(frame.filename.replace("\\", "/")) for frame in frames)
    return in_plugin and not any(frame.name == "run_job" for frame in frames)


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

    def walk(table: dict, prefix: str) -> None:
        for key, value in table.items():
            names.append(f"{prefix}{key}")
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")

    walk(OmegaConf.to_container(cfg), "")
    if config_name == "train":
        names += [path.name for path in CONFIG.iterdir() if path.is_dir()]
        for path in (CONFIG / "model").glob("*.yaml"):
            walk(OmegaConf.to_container(OmegaConf.load(path)), "model.")
    return names


def check_arguments(arguments: list[str], config_name: str) -> list[str]:
    """The arguments, flags first, as Hydra wants them.

    Raises:
        UserError: Hydra would take it without a word (`+misspelt=1`), or answer with a traceback.
    """
    parser = get_args_parser()
    parser.error = refuse_flag
    arguments = with_values(arguments)
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.experimental_rerun:
        raise UserError("--experimental-rerun: runs here leave no pickled job; see resume_training")
    if parsed.resolve and not parsed.cfg:
        raise UserError("--resolve goes with --cfg: --cfg job --resolve")
    if sum(map(bool, (parsed.multirun, parsed.cfg, parsed.info, parsed.shell_completion))) > 1:
        raise UserError("--multirun, --cfg, --info and --shell-completion: one of them at a time")
    flags = list(arguments)
    for override in parsed.overrides:
        flags.remove(override)
        check_argument(override, config_name)
    return flags + parsed.overrides


def refuse_flag(message: str) -> NoReturn:
    raise UserError(f"{message}; settings are written KEY=VALUE, --help lists them")


def with_values(arguments: list[str]) -> list[str]:
    """`--cfg` and `--info` with a value, which may be left out: `--cfg lambda_l0=1`."""
    given = []
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        given.append(argument)
        if argument in FLAGS_WITH_VALUE and ("=" in following or following[:1] in ("", "-")):
            given.append(FLAGS_WITH_VALUE[argument])
    return given


def check_argument(argument: str, config_name: str) -> None:
    if "=" not in argument.lstrip("=") and not argument.startswith("~"):
        raise UserError(f"'{argument}' is not a setting; write KEY=VALUE")
    override = parse(argument)
    key = override.key_or_group
    if override.is_add() or override.is_force_add() or override.is_delete():
        known = known_settings(config_name)
        hint = f"; write '{key}=…'" if key in known else did_you_mean(key, known)
        raise UserError(f"'{argument}': settings cannot be added or removed{hint}")
    if key in OPTUNAS and not is_count(override.value()):
        raise UserError(f"{argument} must be {COUNT[1]}")
    if not override.is_sweep_override() and override.value() is None and (CONFIG / key).is_dir():
        options = ", ".join(sorted(path.stem for path in (CONFIG / key).glob("*.yaml")))
        raise UserError(f"{argument}: leave it out, or choose one of {options}")
