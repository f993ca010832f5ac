"""Whether a run can start from its checkpoint with the settings that it is given."""

from omegaconf import DictConfig

from sparsereg.commands.comparable import differences, value_at
from sparsereg.commands.overrides import group_of
from sparsereg.commands.settings import KEPT, budget_of, settings_with, to_plain
from sparsereg.errors import UserError


def check_compact(checkpoint: dict, cfg: DictConfig, overrides: list[str], classes: list) -> None:
    """Raise UserError for settings that a network which is cut already cannot follow."""
    check_ungated(cfg)
    for override in overrides:
        if group_of(override) == "model":
            raise UserError(f"{override}: a compact network is as it was cut; leave it out")
    trained = checkpoint["sparsereg"]["data"]["classes"]
    if len(trained) != len(classes):
        raise UserError(
            f"the compact network tells {len(trained)} classes apart and the data have "
            f"{len(classes)}: choose its data with data=… and data.root=…"
        )


def check_ungated(cfg: DictConfig) -> None:
    """Raise UserError for gates in the compact network of `ckpt_path`."""
    key, what = budget_of(cfg), f"ckpt_path={cfg.ckpt_path} is a compact network"
    if key is not None:
        raise UserError(
            f"{what}, which has no gates for {key}={cfg[key]}: start from the network that was "
            "not cut, the best.ckpt of its run"
        )
    if not cfg.without_using_gate:
        raise UserError(f"{what}, which is trained without gates: add without_using_gate=true")


def check_resumable(checkpoint: dict, cfg: DictConfig, is_finished: bool) -> None:
    """Raise UserError unless the checkpoint's run can go on with these settings.

    Of a run that was stopped between its last epoch and its results, `is_finished` false, the rest
    is done: evaluation, cut and the training after it.
    """
    if not checkpoint.get("optimizer_states"):
        raise UserError(
            f"ckpt_path={cfg.ckpt_path} holds a network without the state of a training run: "
            "train it on with resume_training=false"
        )
    gated = any(key.endswith("qz_loga") for key in checkpoint["state_dict"])
    if gated == cfg.without_using_gate:
        raise UserError(
            f"without_using_gate={str(cfg.without_using_gate).lower()}, but the checkpoint was "
            f"trained with{'' if gated else 'out'} gates: resume with "
            f"without_using_gate={str(not gated).lower()}"
        )
    before, now = checkpoint["sparsereg"]["config"], to_plain(cfg)
    for key in settings_with(KEPT):
        kept = value_at(now, key)
        for name, old, new in differences({key: value_at(before, key, kept)}, {key: kept}):
            new, old = ("null" if value is None else value for value in (new, old))
            raise UserError(
                f"{name}={new}, but the checkpoint was trained with {old}: a resumed run keeps it; "
                "resume_training=false starts a new run with its weights"
            )
    if epochs_of(checkpoint) >= cfg.trainer.max_epochs and is_finished:
        raise UserError(
            f"nothing left to train: the checkpoint has {epochs_of(checkpoint)} of "
            f"trainer.max_epochs={cfg.trainer.max_epochs} epochs"
        )


def epochs_of(checkpoint: dict) -> int:
    """The epochs that its run has completed."""
    try:
        epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    except (LookupError, TypeError):
        epochs = None
    if not isinstance(epochs, int):
        raise UserError("the checkpoint does not say how far its training came")
    return epochs
