"""The settings of a run that can make a difference, as one flat table {dotted key: value}."""

from typing import Any

GROUPS_LEFT_OUT = ("callbacks", "logger")
AVERAGING = "callbacks.average_weights.decay"  # None: no average
LEFT_OUT = {  # what a run shows and where things lie
    *("output_dir", "skip_finished", "data.root", "data.cache_dir", "data.eval_batch_size"),
    *("trainer", "trainer.enable_progress_bar", "trainer.enable_model_summary"),
    *("trainer.log_every_n_steps", "trainer.profiler", "trainer.detect_anomaly"),
    *("trainer.num_sanity_val_steps", "trainer.use_distributed_sampler"),
    *("ckpt_path", "resume_training", "without_using_gate"),  # said by `start` and `lambda_l0`
}
OF_GATES = {  # without meaning when there are none
    *("lambda_warmup", "cost", "target_sparsity", "target_warmup", "settle_epochs", "dual_lr"),
    *("min_open_channels", "gate_reductions", "keep_gates", "droprate_init", "gate_lr"),
    "loga_bounds",
    *("round_to", "model.gate_reductions", "model.droprate_init", "model.temperature"),
    *("model.sampling", "model.gate_inputs"),
}


BY_LAYER = ("lambda_l0", "target_sparsity")  # a number, or {pattern of layers: number}


def reported_settings(config: dict) -> dict[str, Any]:
    """The settings of one config.yaml.

    `start` is what the run began with: scratch, trained, cut (a compact network), or resumed if
    its beginning is not known. `lambda_l0` is "no gates" without gates, and None with a target,
    which finds it. Classes go by their name: `optimizer: AdamW`.
    """
    flat = flatten(config)
    if flat.get("loss.teacher") is not None:
        flat["loss.teacher"] = "yes"  # each seed may have its own
    if "callbacks" in config:
        flat.setdefault(AVERAGING, None)
    settings = {
        key: value
        for key, value in flat.items()
        if key not in LEFT_OUT
        and (key == AVERAGING or key.partition(".")[0] not in GROUPS_LEFT_OUT)
        and not repeats_flat_key(key, flat)
    }
    if config.get("without_using_gate"):
        settings = {key: value for key, value in settings.items() if key not in OF_GATES}
        settings["lambda_l0"] = "no gates"
    elif config.get("target_sparsity") is not None:
        settings["lambda_l0"] = None
    return settings | {"start": start(config)}


def flatten(config: dict, prefix: str = "") -> dict[str, Any]:
    """{dotted key: value}; `optimizer._target_` becomes `optimizer`, the last part of its name."""
    flat = {}
    for key, value in config.items():
        if prefix + key in BY_LAYER and isinstance(value, dict):
            flat[key] = ", ".join(f"{layers}: {each}" for layers, each in value.items())
        elif isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif key == "_target_":
            flat[prefix.removesuffix(".")] = str(value).rpartition(".")[2]
        elif key != "_partial_":
            flat[f"{prefix}{key}"] = value
    return flat


def repeats_flat_key(key: str, flat: dict) -> bool:
    """As `model.droprate_init` does, which is `droprate_init` unless it was set by itself."""
    group, _, name = key.rpartition(".")
    return group != "" and name in flat and flat[name] == flat[key]


def start(config: dict) -> str:
    if config.get("resume_training"):
        return "resumed"
    path = config.get("ckpt_path")
    if path is None:
        return "scratch"
    return "cut" if str(path).endswith("compact.pt") else "trained"
