"""Train a classifier whose channels are L0-gated (Louizos, Welling, Kingma 2018, arXiv 1712.01312).

python train.py without_using_gate=true                                     # no gates
python train.py lambda_l0=1.0                                               # gates from scratch
python train.py ckpt_path=RUN/last.ckpt lambda_l0=20.0 droprate_init=0.05   # gates, then cut
python train.py ckpt_path=RUN/last.ckpt resume_training=true                # go on exactly
python train.py target_sparsity=0.6 cost=params                             # the sparsity asked for
python train.py target_sparsity=[0.3,0.5,0.7,0.9] finetune_epochs=10        # several, in one run
python train.py ckpt_path=RUN/best.ckpt max_drop=0.5 droprate_init=0.05     # the accuracy to keep
python train.py target_params=100k                                          # or the size
python train.py target_latency=0.4                                          # or the milliseconds
python train.py lambda_l0=1.0 finetune_epochs=20                            # cut, then train on
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sparsereg.commands import command_line
from sparsereg.commands.checks import check_settings
from sparsereg.commands.machine import check_devices, is_on_cpu
from sparsereg.commands.memory import importing
from sparsereg.commands.overrides import choose_as, typed
from sparsereg.commands.resume import finetune_settings, run_settings
from sparsereg.commands.settings import budget_of, to_plain, with_cost
from sparsereg.errors import printable
from sparsereg.runs.finished import finished_run, is_finished
from sparsereg.runs.start_checks import check_compact, check_resumable


def main(cfg: DictConfig) -> tuple[float, float]:
    """Train; return (validation accuracy, sparsity), what Optuna's sweeper maximises."""
    overrides = typed()
    check_settings(cfg, overrides, complete=not cfg.resume_training)
    cfg = with_cost(cfg)
    results = finished_run(cfg) if cfg.skip_finished else None
    if results is None:
        with importing():  # torch, to count GPUs
            check_devices(cfg.trainer)
        results = method_of(cfg)(cfg, overrides)
    return results["val_acc"], results["sparsity"]


def method_of(cfg: DictConfig) -> Callable[[DictConfig, list[str]], dict]:
    """One run, or the several that some budgets need."""
    if OmegaConf.is_list(cfg.target_sparsity):
        from sparsereg.budgets.sizes import train_sizes

        return lambda cfg, _: train_sizes(cfg, train)
    if cfg.max_drop is not None:
        from sparsereg.budgets.max_drop import train_smallest

        return lambda cfg, _: train_smallest(cfg, train)
    return train


def train(
    cfg: DictConfig,
    overrides: list[str],
    stopped: Path | None = None,
    test: bool = True,
    is_last: bool = True,
) -> dict:
    """Train a network, or train it on from the checkpoint of a run that was `stopped`, and evaluate
    it, unless `test` is false without the test set; the last of a command says what to type next.
    """
    with importing():  # takes seconds: only when the settings are right
        import pytorch_lightning as pl
        import torch
        from hydra.utils import instantiate

        from sparsereg.budgets.objective import new_objective
        from sparsereg.budgets.rounding import round_to
        from sparsereg.checkpoint import load_weights, read_checkpoint
        from sparsereg.export.formats import cut_file
        from sparsereg.model.precision import precision_of
        from sparsereg.runs.folder import claim_version
        from sparsereg.training.guards import check_length, strategy_of
        from sparsereg.training.loggers import new_loggers
        from sparsereg.training.module import L0Module
        from sparsereg.training.monitors import ProgressBar
        from sparsereg.training.results import evaluate, finish
        from sparsereg.training.saving import AtomicCheckpointIO, TrainingTime

    checkpoint = read_checkpoint(cfg.ckpt_path) if cfg.ckpt_path else None
    cfg, record = run_settings(cfg, checkpoint)
    if cfg.resume_training:
        check_resumable(checkpoint, cfg, is_finished(cfg))
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    torch.set_float32_matmul_precision(cfg.matmul_precision)
    precision = precision_of(cfg.trainer.precision, is_on_cpu(cfg.trainer))

    data = instantiate(cfg.data, _convert_="all")
    data.prepare_data()
    data.setup("fit")
    net, record["network"] = new_network(cfg, overrides, checkpoint, data, record["network"])
    record["data"] = data.record()
    loss = instantiate(cfg.loss)
    loss.check_classes(data.classes)
    scheduler = instantiate(cfg.scheduler, _convert_="all")
    check_length(cfg, data, scheduler)
    objective = None
    if not cfg.without_using_gate:  # λ by hand, or a target
        objective = new_objective(to_plain(cfg), net, data.image_shape)
        if not cfg.resume_training and budget_of(cfg):
            objective.check_reach()

    module = L0Module(
        net,
        num_classes=len(data.classes),
        optimizer=instantiate(cfg.optimizer, _convert_="all"),
        scheduler=scheduler,
        loss=loss,
        objective=objective,
        flip_tta=cfg.flip_tta,
        compile=cfg.compile,
        record=record,
    )

    runs = Path(cfg.output_dir) / "lightning_logs"
    version = claim_version(runs, cfg)
    callbacks = [instantiate(c, _convert_="all") for c in cfg.callbacks.values() if c]
    if cfg.trainer.enable_progress_bar:
        callbacks.append(ProgressBar())
    timer = TrainingTime()
    trainer = instantiate(cfg.trainer, _convert_="all")(
        callbacks=[*callbacks, timer],
        precision=precision,
        logger=new_loggers(cfg, version),
        plugins=[AtomicCheckpointIO()],
        strategy=strategy_of(cfg),
    )
    resume_from = cfg.ckpt_path if cfg.resume_training else stopped
    trainer.fit(module, data, ckpt_path=resume_from, weights_only=True)

    evaluated = trainer.checkpoint_callback.evaluated
    load_weights(net, read_checkpoint(evaluated))
    results = evaluate(trainer, module, data, evaluated, test)
    results["train_seconds"] = timer.time_elapsed("train")
    folder = runs / f"version_{version}"
    finish(trainer, cfg, results, folder, is_last and not cfg.finetune_epochs)
    if cfg.finetune_epochs:
        last = trainer.checkpoint_callback.last  # the best may be from before its gates closed
        cut = None
        if trainer.is_global_zero:
            cut = cut_file(last, round_to(cfg.round_to, last, to_plain(cfg)["latency"]))
        cut = trainer.strategy.broadcast(cut)
        if trainer.is_global_zero:
            print(printable(f"cut {last} to {cut}, which is now trained on"), flush=True)
        return train(finetune_settings(cfg, cut), [], is_last=is_last)
    return results


def new_network(
    cfg: DictConfig, overrides: list[str], checkpoint: dict | None, data: Any, described: dict
) -> tuple[Any, dict]:
    """The network with the weights it starts with, and what checkpoints need to build it again."""
    from hydra.utils import instantiate

    from sparsereg.checkpoint import check_classes, is_compact, load_weights, new_network
    from sparsereg.networks import check_takes

    if cfg.resume_training:
        check_classes(checkpoint, data.classes)
    if checkpoint is not None and is_compact(checkpoint):
        check_compact(checkpoint, cfg, overrides, data.classes)
        net, described = new_network(checkpoint), checkpoint["sparsereg"]["network"]
    else:
        fitting = {"num_classes": len(data.classes), "image_shape": list(data.image_shape)}
        if checkpoint is not None and "image_shape" not in checkpoint["sparsereg"]["network"]:
            del fitting["image_shape"]  # an older one: its network has been built without
        net, described = instantiate(cfg.model, **fitting), described | fitting
    if checkpoint is not None:
        hint = choose_as(checkpoint["sparsereg"]["config"], cfg)
        load_weights(net, checkpoint, not (cfg.resume_training or cfg.keep_gates), hint)
    check_takes(net, data.image_shape)  # a cut one reads the channels that its file says
    return net, described


def cli() -> None:  # installed as sparsereg-train
    command_line.run(main)


if __name__ == "__main__":
    cli()
