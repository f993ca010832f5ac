"""Cut the closed channels out of a trained network, export it, and say what that gains.

    python compact.py ckpt_path=RUN/best.ckpt

Writes into a folder beside the checkpoint, RUN/best_compact: compact.pt (for train.py, test.py and
sparsereg.load), compact.pt2 (torch.export), compact.onnx and report.json.
"""

import json
import sys

from omegaconf import DictConfig

from sparsereg.commands import command_line
from sparsereg.commands.checks import check_settings
from sparsereg.commands.memory import importing
from sparsereg.commands.overrides import refuse_other_groups, typed
from sparsereg.errors import UserError, printable


def main(cfg: DictConfig) -> None:
    if cfg.ckpt_path is None:
        raise UserError("ckpt_path=… is needed, the checkpoint to cut")
    refuse_other_groups("compact.py", "ckpt_path", "round_to")
    check_settings(cfg, typed(), complete=False)
    with importing():  # takes seconds
        from sparsereg.checkpoint import load, read_checkpoint
        from sparsereg.compact import fold, load_compact
        from sparsereg.export.formats import cut_file, export
        from sparsereg.export.report import print_report, report
        from sparsereg.files import write_atomically

    file = cut_file(cfg.ckpt_path, cfg.round_to)
    net, small = load(cfg.ckpt_path), load_compact(file)
    image_shape = read_checkpoint(file)["sparsereg"]["data"]["image_shape"]
    differences = export(fold(small), image_shape, file.parent)
    results = report(net, small, image_shape, cfg.round_to)
    results |= {"checkpoint": cfg.ckpt_path, "largest_relative_difference": differences}
    write_atomically(file.with_name("report.json"), json.dumps(results, indent=1).encode())
    print_report(results)
    names = ", ".join(["compact.pt", *differences, "report.json"])
    print(printable(f"wrote {file.parent}: {names}"))
    if "compact.onnx" not in differences:
        hint = "compact.onnx is not written: pip install -r requirements-export.txt"
        print(hint, file=sys.stderr)


def cli() -> None:  # installed as sparsereg-compact
    command_line.run(main)


if __name__ == "__main__":
    cli()
