"""The end of a run: accuracy and size of one checkpoint, as a table and as JSON."""

import json
import os
import shlex
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import nn

from sparsereg.budgets.size import TargetSize
from sparsereg.budgets.target_latency import TOLERANCE as LATENCY_TOLERANCE
from sparsereg.budgets.target_latency import TargetLatency
from sparsereg.checkpoint import is_compact
from sparsereg.commands.overrides import as_argument, command_again
from sparsereg.errors import printable
from sparsereg.files import write_atomically
from sparsereg.model.basic_l0_blocks import deterministic_gate, gate_layers, prob_nonzero
from sparsereg.runs.finished import dense_run
from sparsereg.sparsity.constraint import TOLERANCE
from sparsereg.sparsity.objective import GateObjective
from sparsereg.sparsity.size import measure, open_channels, open_channels_table, sparsities
from sparsereg.training.loggers import TensorBoard, hparams, log_final, tag_of
from sparsereg.training.module import L0Module

SIZES = {"params": "parameters", "macs": "multiply-adds"}  # that can be asked for in numbers


def evaluate(
    trainer: pl.Trainer,
    module: L0Module,
    data: pl.LightningDataModule,
    checkpoint: Path,
    test: bool = True,
) -> dict:
    """Validation and test accuracy of the module's network, and what remains of it when cut.
    Without `test` the test set stays unread, for who chooses among networks."""
    net = module.net
    loggers, trainer.loggers = trainer.loggers, []  # the curves end with the training
    [validation] = trainer.validate(module, data, verbose=False)
    tested = trainer.test(module, data, verbose=False)[0] if test else {}
    trainer.loggers = loggers
    gates = gate_layers(net).values()
    nonzero = [prob_nonzero(gate.qz_loga, gate.temperature) for gate in gates]
    size = measure(net, data.image_shape)
    results = {
        "checkpoint": str(checkpoint),
        "val_acc": validation["val_acc"],
        "test_acc": tested.get("test_acc"),
        "L_C0": torch.cat(nonzero).mean().item() if nonzero else None,
        **size,
        "open_channels": open_channels(net),
    }
    if module.objective is not None:
        results |= reached(module.objective, net, size)
    return results


def reached(objective: GateObjective, net: nn.Module, size: dict) -> dict:
    """The sparsity that was asked for, and the one that the cut network has; empty without a
    target."""
    if objective.target is None:
        return {}
    found = objective.sparsity(deterministic_gate(net.qz_loga().detach()) > 0)
    if objective.layer_cost is not None:
        asked = objective.target.items()
        layers = {name: {"target": t, "reached": found[name]} for name, t in asked}
        return {"cost": objective.cost, "target_by_layer": layers}
    if isinstance(objective, TargetSize):
        return {"cost": objective.cost, f"target_{objective.cost}": objective.at_most}
    if isinstance(objective, TargetLatency):
        return objective.report()
    cost, target = objective.cost, objective.target
    measured = sparsities(net, size).get(cost, found[""])
    return {"cost": cost, "target_sparsity": target, "reached_sparsity": measured}


def print_summary(results: dict, dense: dict | None = None) -> None:
    """The results as a table, beside those of a `dense` run if there is one."""
    console = Console()
    print(printable(f"Checkpoint {results['checkpoint']}"))
    table = Table()
    for column in ("", "dense", "if cut" if results["L_C0"] is not None else "this network"):
        table.add_column(column, justify="left" if column == "" else "right")
    for name, key in (("validation accuracy", "val_acc"), ("test accuracy", "test_acc")):
        if results[key] is not None:
            table.add_row(name, f"{dense[key]:.2%}" if dense else "", f"{results[key]:.2%}")
    if results["L_C0"] is not None:
        table.add_row("L_C0", "", f"{results['L_C0']:.4f}")
    table.add_row("sparsity", "0", f"{results['sparsity']:.4f}")
    table.add_row("parameters", f"{results['dense_params']:,}", f"{results['params']:,}")
    table.add_row("multiply-adds", f"{results['dense_macs']:,}", f"{results['macs']:,}")
    if "target_sparsity" in results:
        wanted = f"sparsity of {results['cost']}, {results['target_sparsity']} asked for"
        table.add_row(wanted, "0", f"{results['reached_sparsity']:.4f}")
    for cost, words in SIZES.items():
        if f"target_{cost}" in results:
            wanted = f"{words}, at most {results[f'target_{cost}']:,} asked for"
            table.add_row(wanted, f"{results[f'dense_{cost}']:,}", f"{results[cost]:,}")
    if "target_latency" in results:
        wanted = f"ms, batch {results['batch']}, {results['target_latency']:.3g} asked for"
        table.add_row(wanted, f"{results['dense_latency']:.3g}", f"{results['latency']:.3g}")
    for name, layer in results.get("target_by_layer", {}).items():
        wanted = f"sparsity of {name}, {layer['target']} asked for"
        table.add_row(wanted, "0", f"{layer['reached']:.4f}")
    console.print(table)
    if "train_seconds" in results:
        console.print(f"trained in {results['train_seconds']:.0f} s")
    if results["open_channels"]:
        console.print(open_channels_table(results["open_channels"]))
    warn_missed(results)


def warn_missed(results: dict) -> None:
    """Say so when the sparsity that was asked for is off by more than 0.01."""
    asked = {
        f" of {name}": (layer["target"], layer["reached"])
        for name, layer in results.get("target_by_layer", {}).items()
    }
    if "target_sparsity" in results:
        asked[""] = results["target_sparsity"], results["reached_sparsity"]
    for where, (target, found) in asked.items():
        if abs(found - target) > TOLERANCE:
            print(
                f"warning: target_sparsity={target}{where} (cost={results['cost']}) was missed: "
                f"the cut network of {results['checkpoint']} has {found:.4f}",
                file=sys.stderr,
            )
    for cost, words in SIZES.items():
        most, found = results.get(f"target_{cost}"), results.get(cost)
        if most is not None and not 0 <= most - found <= TOLERANCE * results[f"dense_{cost}"]:
            print(
                f"warning: target_{cost}={most:,} was missed: the cut network of "
                f"{results['checkpoint']} has {found:,} {words}",
                file=sys.stderr,
            )
    if "target_latency" in results:
        asked, found = results["target_latency"], results["latency"]
        if abs(found / asked - 1) > LATENCY_TOLERANCE:
            print(
                f"warning: {asked:.3g} ms were asked for, and the cut network of "
                f"{results['checkpoint']} takes {found:.3g} ms",
                file=sys.stderr,
            )


def finish(
    trainer: pl.Trainer, cfg: DictConfig, results: dict, folder: Path, is_last: bool
) -> None:
    """Keep the summary as summary.json, print it, and log it beside the settings; after the last
    run of a command, print what to type next."""
    if not trainer.is_global_zero:
        return
    beside = {"checkpoint": os.path.relpath(results["checkpoint"], folder)}  # it may be moved
    write_atomically(folder / "summary.json", json.dumps(results | beside, indent=1) + "\n")
    found = dense_run(cfg)
    print_summary(results, found[1] if found else None)
    if found:
        print(printable(f"dense: {found[0]}, trained without gates"))
    numbers = {key: value for key, value in results.items() if isinstance(value, int | float)}
    final = {f"final/{key}": value for key, value in numbers.items()}
    logger = TensorBoard(folder.parent, "", folder.name)
    logger.log_hyperparams(hparams(cfg), {tag_of(key): value for key, value in final.items()})
    logger.finalize("success")
    log_final(trainer.loggers, final)
    if is_last and HydraConfig.get().mode != RunMode.MULTIRUN:
        is_cut = is_compact({"sparsereg": trainer.lightning_module.record})
        lines = next_commands(cfg, Path(results["checkpoint"]), found, is_cut)
        print("\nto go on:", *lines, sep="\n  ")


def next_commands(
    cfg: DictConfig, checkpoint: Path, dense: tuple | None, is_cut: bool
) -> list[str]:
    """Lines to type after a run, with what each does. A network that `is_cut` takes no gates."""
    compact = f"python compact.py {as_argument(checkpoint)}"
    lines = [("cut the closed channels out, export, measure", compact)]
    if not cfg.without_using_gate and dense is None and cfg.ckpt_path is None:
        lines.append(
            ("what pruning costs: the dense network", command_again(cfg, "without_using_gate=true"))
        )
    if is_cut:
        test = f"python test.py {as_argument(checkpoint)}"
        lines = [("export, measure", compact), ("its accuracy again", test)]
    elif cfg.without_using_gate:
        asked = (
            as_argument(checkpoint),
            "target_sparsity=0.6",
            "cost=params",
            "droprate_init=0.05",
        )
        lines = [("60 % fewer parameters", command_again(cfg, *asked))]
    logs = shlex.quote(str(Path(cfg.output_dir) / "lightning_logs"))
    lines += [("curves", f"tensorboard --logdir {logs}")]
    lines += [("all runs in one table", f"python report.py {as_argument(cfg.output_dir, 'runs')}")]
    return [printable(line) for words, command in lines for line in (f"# {words}", command)]
