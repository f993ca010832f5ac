"""The end of a run: accuracy and size of one checkpoint, as a table and as JSON."""

import json
import os
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table
from torch import nn

from sparsereg.errors import printable
from sparsereg.files import write_atomically
from sparsereg.model.basic_l0_blocks import deterministic_gate, gate_layers, prob_nonzero
from sparsereg.sparsity.constraint import TOLERANCE
from sparsereg.sparsity.size import measure, open_channels, open_channels_table, sparsities
from sparsereg.training.loggers import log_final, settings_to_log
from sparsereg.training.module import L0Module
from sparsereg.training.objective import GateObjective


def evaluate(
    trainer: pl.Trainer, module: L0Module, data: pl.LightningDataModule, checkpoint: Path
) -> dict:
    """Validation and test accuracy of the module's network, and what remains of it when cut."""
    net = module.net
    loggers, trainer.loggers = trainer.loggers, []  # the curves end with the training
    [validation] = trainer.validate(module, data, verbose=False)
    [test] = trainer.test(module, data, verbose=False)
    trainer.loggers = loggers
    gates = gate_layers(net).values()
    nonzero = [prob_nonzero(gate.qz_loga, gate.temperature) for gate in gates]
    size = measure(net, data.image_shape)
    results = {
        "checkpoint": str(checkpoint),
        "val_acc": validation["val_acc"],
        "test_acc": test["test_acc"],
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
    cost, target = objective.cost, objective.target
    measured = sparsities(net, size).get(cost, found[""])
    return {"cost": cost, "target_sparsity": target, "reached_sparsity": measured}


def print_summary(results: dict) -> None:
    console = Console()
    print(printable(f"Checkpoint {results['checkpoint']}"))
    table = Table()
    for column in ("", "dense", "closed channels removed"):
        table.add_column(column, justify="left" if column == "" else "right")
    table.add_row("validation accuracy", "", f"{results['val_acc']:.2%}")
    table.add_row("test accuracy", "", f"{results['test_acc']:.2%}")
    if results["L_C0"] is not None:
        table.add_row("L_C0", "", f"{results['L_C0']:.4f}")
    table.add_row("sparsity", "0", f"{results['sparsity']:.4f}")
    table.add_row("parameters", f"{results['dense_params']:,}", f"{results['params']:,}")
    table.add_row("multiply-adds", f"{results['dense_macs']:,}", f"{results['macs']:,}")
    if "target_sparsity" in results:
        wanted = f"sparsity of {results['cost']}, {results['target_sparsity']} asked for"
        table.add_row(wanted, "0", f"{results['reached_sparsity']:.4f}")
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


def finish(trainer: pl.Trainer, cfg: DictConfig, results: dict, folder: Path) -> None:
    """Print the summary, keep it as summary.json, and log it beside the settings."""
    if not trainer.is_global_zero:
        return
    print_summary(results)
    beside = {"checkpoint": os.path.relpath(results["checkpoint"], folder)}  # it may be moved
    write_atomically(folder / "summary.json", json.dumps(results | beside, indent=1) + "\n")
    final = {f"final/{key}": value for key, value in results.items() if isinstance(value, float)}
    logger = TensorBoardLogger(folder.parent, "", folder.name)
    logger.log_hyperparams(settings_to_log(cfg), final)
    logger.finalize("success")
    log_final(trainer.loggers, final)
