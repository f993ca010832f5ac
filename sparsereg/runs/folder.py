"""Each run gets a folder of its own: OUTPUT_DIR/lightning_logs/version_N."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from sparsereg.errors import UserError


def claim_version(root: Path, cfg: DictConfig) -> int:
    """Create the first free ROOT/version_N, keep the resolved configuration in it, return N.

    `mkdir` is atomic: no two runs get the same folder. Only the first process of a distributed
    run has one; the others write nothing.

    Raises:
        UserError: the folder cannot be created.
    """
    if rank_zero_only.rank != 0:
        return -1
    try:
        root.mkdir(parents=True, exist_ok=True)
        numbers = [p.name.removeprefix("version_") for p in root.glob("version_*")]
        number = max((int(n) + 1 for n in numbers if n.isdigit()), default=0)
        while True:
            folder = root / f"version_{number}"
            try:
                folder.mkdir()
                break
            except FileExistsError:
                number += 1
        (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
        return number
    except OSError as error:
        raise UserError(
            f"output_dir={root.parent} cannot be written ({error.strerror}: {error.filename})"
        ) from None
