"""Test a checkpoint: accuracy, sparsity, parameters, multiply-adds.

    python test.py ckpt_path=RUN/last.ckpt
    python test.py ckpt_path=RUN/best_compact/compact.pt               # the cut network
    python test.py ckpt_path=RUN/best.ckpt flip_tta=true               # with mirror images
    python test.py ckpt_path=RUN/best.ckpt trainer=gpu                 # on a GPU
    python test.py ckpt_path=RUN/best.ckpt data.root=PATH              # its images lie elsewhere

Network and data come from the checkpoint; `data.root=…` and the like are changed as in train.py.
"""

from omegaconf import DictConfig

from sparsereg.commands import command_line
from sparsereg.commands.checks import check_settings
from sparsereg.commands.machine import check_devices
from sparsereg.commands.memory import importing
from sparsereg.commands.overrides import refuse_other_groups, typed
from sparsereg.commands.resume import settings_of
from sparsereg.errors import UserError

TAKES = ("ckpt_path", "data", "trainer", "matmul_precision", "flip_tta")


def main(cfg: DictConfig) -> None:
    if cfg.ckpt_path is None:
        raise UserError("ckpt_path=… is needed, the checkpoint to test")
    refuse_other_groups("test.py", *TAKES)
    check_settings(cfg, typed(), complete=False)
    with importing():  # takes seconds: only when the settings are right
        check_devices(cfg.trainer)
        import torch
        from hydra.utils import instantiate

        from sparsereg.checkpoint import check_classes, check_images, load, read_checkpoint
        from sparsereg.training.module import L0Module
        from sparsereg.training.monitors import ProgressBar
        from sparsereg.training.results import evaluate, print_summary

    torch.set_float32_matmul_precision(cfg.matmul_precision)
    checkpoint = read_checkpoint(cfg.ckpt_path)
    run_cfg = settings_of(checkpoint, cfg, ("data", "flip_tta"))
    data = instantiate(run_cfg.data, _convert_="all")
    data.prepare_data()
    data.setup("test")
    check_classes(checkpoint, data.classes)
    check_images(checkpoint, data.image_shape)

    net = load(cfg.ckpt_path)
    module = L0Module(net, len(data.classes), None, None, flip_tta=run_cfg.flip_tta)
    trainer = instantiate(cfg.trainer, _convert_="all")(
        callbacks=[ProgressBar()] if cfg.trainer.enable_progress_bar else [],
        precision="32-true",
        logger=False,
        enable_checkpointing=False,
    )
    print_summary(evaluate(trainer, module, data, cfg.ckpt_path))


def cli() -> None:  # installed as sparsereg-test
    command_line.run(main, takes=TAKES)


if __name__ == "__main__":
    cli()
