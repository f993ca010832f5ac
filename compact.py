"""Cut the closed channels out of a trained network, export it, and say what that gains.

    python compact.py ckpt_path=RUN/best.ckpt
    python compact.py ckpt_path=RUN/best.ckpt int8=true
    python compact.py ckpt_path=RUN/last.ckpt                          # of the newest epoch
    python compact.py ckpt_path=RUN/best.ckpt round_to=8               # widths in multiples of 8
    python test.py ckpt_path=RUN/best_compact/compact.pt               # then: its accuracy
    python train.py ckpt_path=RUN/best_compact/compact.pt without_using_gate=true   # train it on

Writes into a folder beside the checkpoint, RUN/best_compact: compact.pt (for train.py, test.py and
sparsereg.load), compact.pt2 (torch.export), compact.onnx, what programs that run these have to know
(deploy.json), and report.json; with int8=true also compact.int8.onnx, which takes its ranges from
the checkpoint's training images.
"""

import json
import sys
from pathlib import Path

from omegaconf import DictConfig

from sparsereg.commands import command_line
from sparsereg.commands.checks import check_settings
from sparsereg.commands.machine import check_exporter
from sparsereg.commands.memory import importing
from sparsereg.commands.overrides import refuse_other_groups, typed
from sparsereg.commands.resume import settings_of
from sparsereg.commands.settings import to_plain
from sparsereg.errors import UserError, printable

TAKES = ("ckpt_path", "round_to", "latency", "normalise", "int8")


def main(cfg: DictConfig) -> None:
    if cfg.ckpt_path is None:
        raise UserError("ckpt_path=… is needed, the checkpoint to cut")
    takes_data = ("data",) if cfg.int8 else ()
    refuse_other_groups("compact.py", *TAKES, *takes_data)
    check_settings(cfg, typed(), complete=False)
    if cfg.int8:
        check_exporter("int8=true")
        if cfg.normalise != "outside":
            raise UserError(f"int8=true with normalise={cfg.normalise}: leave one of them out")
    with importing():  # takes seconds
        from sparsereg.budgets.rounding import round_to
        from sparsereg.checkpoint import load, read_checkpoint
        from sparsereg.compact import load_compact
        from sparsereg.export.formats import cut_file, export, has_onnx
        from sparsereg.export.report import print_report, report
        from sparsereg.files import write_atomically

    checkpoint = read_checkpoint(cfg.ckpt_path)
    about = checkpoint["sparsereg"]["data"]
    run_cfg, data = data_of(cfg, checkpoint) if cfg.int8 else (None, None)
    number = round_to(cfg.round_to, cfg.ckpt_path, to_plain(cfg)["latency"])
    net = load(cfg.ckpt_path)
    file = cut_file(cfg.ckpt_path, number, net)
    small = load_compact(file)
    known = {key: about[key] for key in ("image_shape", "classes", "mean", "std")}
    differences = export(small, folder=file.parent, normalise=cfg.normalise, **known)
    if cfg.int8 and "compact.onnx" not in differences:
        raise UserError("int8=true needs compact.onnx, which is not written: leave it out")
    results = report(net, small, about["image_shape"], number)
    results |= {"checkpoint": cfg.ckpt_path, "largest_relative_difference": differences}
    print_report(results)
    names = ["compact.pt", *differences]
    if cfg.int8:
        results["int8"] = write_int8(file.with_name("compact.onnx"), data, run_cfg.flip_tta)
        names.append("compact.int8.onnx")
    else:
        drop_int8(file.with_name("compact.int8.onnx"))
    write_atomically(file.with_name("report.json"), json.dumps(results, indent=1).encode())
    print(printable(f"wrote {file.parent}: {', '.join([*names, 'deploy.json', 'report.json'])}"))
    if not has_onnx():
        hint = "compact.onnx is not written: pip install -r requirements-export.txt"
        print(hint, file=sys.stderr)


def data_of(cfg: DictConfig, checkpoint: dict) -> tuple:
    """The settings of a checkpoint's run that concern its data, and the data."""
    from hydra.utils import instantiate

    from sparsereg.checkpoint import check_classes, check_images

    run_cfg = settings_of(checkpoint, cfg, ("data", "flip_tta"))
    data = instantiate(run_cfg.data, _convert_="all")
    data.prepare_data()
    data.setup("fit")
    check_classes(checkpoint, data.classes)
    check_images(checkpoint, data.image_shape)
    return run_cfg, data


def write_int8(source: Path, data, flip_tta: bool) -> dict:
    from sparsereg.export import int8

    results = int8.write_int8(source, data, flip_tta)
    int8.print_files(results)
    return results


def drop_int8(stale: Path) -> None:
    """That of an earlier cut, which `report.json` no longer tells of, may be of other weights."""
    if stale.exists():
        stale.unlink()
        print(printable(f"removed {stale}, of an earlier cut; write it anew with int8=true"))


def cli() -> None:  # installed as sparsereg-compact
    command_line.run(main, takes=TAKES)


if __name__ == "__main__":
    cli()
