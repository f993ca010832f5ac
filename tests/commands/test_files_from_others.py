"""Nothing that a checkpoint says is ever run: it chooses plain values of known settings, and never
where things are written, opened, logged or sent, nor devices."""

import copy
import os
from pathlib import Path

import pytest
import torch
from conftest import SMALL, assert_one_line, checkpoint_path, run_folder
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from sparsereg.checkpoint import new_network, read_checkpoint
from sparsereg.commands import overrides, resume
from sparsereg.commands.overrides import CONFIG
from sparsereg.commands.settings import to_plain
from sparsereg.errors import UserError, printable

INTERPOLATIONS = ("${oc.env:HOME}", "${oc.create:{}}", "x${hydra:job.name}", "???", "${seed}")


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        return compose("train", overrides=[*overrides])


@pytest.fixture
def resumed(monkeypatch):
    """Settings of a run that goes on from a checkpoint with this configuration."""

    def settings(config: dict, *typed: str) -> dict:
        for module in (resume, overrides):
            monkeypatch.setattr(module, "typed", lambda: [*typed])
        cfg = composed(*typed)
        with initialize_config_dir(str(CONFIG), version_base="1.3"):
            return to_plain(resume.settings_of({"sparsereg": {"config": config}}, cfg))

    return settings


@pytest.fixture
def config() -> dict:
    """Of a run with another optimizer, data set, average and seed than the defaults."""
    chosen = ["data=digits", "data.batch_size=32", "recipe=modern", "optimizer.lr=0.05", "seed=7"]
    return to_plain(composed(*chosen, "data.cutout=3"))


def test_a_run_goes_on_with_its_settings(resumed, config):
    settings = resumed(copy.deepcopy(config))
    differing = {key for key in config if settings[key] != config[key]}
    assert not differing
    assert settings["data"]["seed"] == settings["callbacks"]["epoch_seed"]["seed"] == 7


def test_values_by_layer_are_plain_too(resumed, config):
    config["lambda_l0"] = {"conv1": 10.0, "fc*": 0.5}
    assert resumed(config)["lambda_l0"] == config["lambda_l0"]
    for hostile in ({"conv1": "${oc.env:HOME}"}, {"${seed}": 1.0}, {"a": {"b": 1.0}}, {}):
        config["lambda_l0"] = hostile
        with pytest.raises(UserError):
            resumed(config)


def test_what_is_typed_comes_first(resumed, config):
    settings = resumed(config, "seed=9", "optimizer=adamw", "trainer=gpu", "data.cutout=0")
    assert settings["seed"] == settings["data"]["seed"] == 9, "what follows a setting follows it"
    assert (
        settings["optimizer"]["_target_"].endswith("AdamW") and settings["optimizer"]["lr"] == 1e-3
    )
    assert settings["trainer"]["precision"] == "bf16-mixed" and settings["data"]["cutout"] == 0
    assert settings["data"]["batch_size"] == 32


@pytest.mark.parametrize("value", INTERPOLATIONS)
@pytest.mark.parametrize("key", ["model.act_fn_name", "data.name", "seed", "optimizer.betas"])
def test_no_interpolation(key, value, resumed, config):
    group, _, name = key.rpartition(".")
    table = config[group] if group else config
    table[name] = [value, value] if name == "betas" else value
    with pytest.raises(UserError, match="not plain values"):
        resumed(config)


FOREIGN = {
    "another class": ("optimizer", {"_target_": "os.system", "command": "echo executed"}),
    "a class with a known name": ("optimizer", {"_target_": "os.AdamW", "lr": 0.1}),
    "an unknown key": ("optimizer", {"_target_": "torch.optim.SGD", "foreach": True}),
    "an unknown flat key": ("hydra", {"run": {"dir": "/elsewhere"}}),
    "a class within": ("data", {"_target_": "sparsereg.data.Digits", "seed": {"_target_": "x"}}),
    "no number": ("seed", "lucky"),
    "no table": ("scheduler", ["multistep"]),
    "a table for a number": ("seed", {"a": {"b": {"c": {"d": {"e": {"f": 1}}}}}}),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_known_settings_and_classes_alone(kind, resumed, config):
    key, value = FOREIGN[kind]
    config[key] = value
    if kind == "a class with a known name":  # the name is looked up here, its module is not
        assert resumed(config)["optimizer"]["_target_"] == "torch.optim.AdamW"
        return
    with pytest.raises(UserError):
        resumed(config)


def test_places_loggers_and_devices_are_this_command_lines(resumed, config):
    config["output_dir"] = "/elsewhere"
    config["logger"]["mlflow"] = {"_target_": "x.MLFlowLogger", "tracking_uri": "http://there"}
    config["logger"]["csv"]["save_dir"] = "/elsewhere"
    config["trainer"] |= {"accelerator": "gpu", "strategy": "ddp"}
    config["compile"] = True
    config["callbacks"]["throughput"] = {"_target_": "os.system"}
    settings = resumed(config)
    own = to_plain(composed())
    for key in ("output_dir", "logger", "compile"):
        assert settings[key] == own[key]
    assert settings["trainer"]["accelerator"] == "auto" == settings["trainer"]["strategy"]
    assert settings["callbacks"]["throughput"] == own["callbacks"]["throughput"]


AGAIN = [("data", "root", "/images/x y"), ("loss", "teacher", "t.ckpt"), ("trainer", "devices", 4)]


@pytest.mark.parametrize("group, name, value", AGAIN)
def test_what_a_result_depends_on_must_be_said_again(group, name, value, resumed, config):
    if name == "root":
        config["data"] = {"_target_": "sparsereg.data.ImageFolder", "image_size": 8}
    config[group][name] = value
    with pytest.raises(UserError, match=rf"had '?{group}\.{name}=\"?{value}"):
        resumed(config)
    typed = f"'{value}'" if isinstance(value, str) else "1"  # other devices than before are fine
    settings = resumed(config, f"{group}.{name}={typed}")
    assert str(settings[group][name]) == typed.strip("'")


def test_the_default_place_need_not_be_said_again(resumed, config):
    config["data"] = {"_target_": "sparsereg.data.Cifar", "name": "cifar100", "root": "data"}
    assert resumed(config)["data"]["name"] == "cifar100"


@pytest.fixture
def hostile(lenet5, tmp_path):
    """A changed copy of a checkpoint in a folder of its own."""

    def change(how) -> Path:
        checkpoint = torch.load(lenet5, weights_only=True)
        how(checkpoint["sparsereg"])
        path = tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)
        return path

    return change


@pytest.mark.slow
def test_a_hostile_checkpoint_goes_on_here(hostile, command, tmp_path, monkeypatch):
    """Whatever it says, the run goes on beside it, and nowhere else."""
    monkeypatch.setenv("SECRET", "hunter2")
    monkeypatch.chdir(tmp_path)

    def change(ours: dict) -> None:
        ours["overrides"] += ["output_dir=$\\{oc.env\\:SECRET\\}", "data._target_=os.system"]
        ours["config"]["output_dir"] = "${oc.env:SECRET}"
        ours["config"]["logger"]["csv"]["save_dir"] = str(tmp_path / "elsewhere")
        ours["config"]["trainer"]["profiler"] = None

    path = hostile(change)
    result = command(
        "train.py", f"ckpt_path={path}", "resume_training=true", "trainer.max_epochs=2"
    )
    assert result.code == 0, result.err
    assert (run_folder(tmp_path, 1) / "summary.json").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["lightning_logs"]
    assert "not taken from the checkpoint: trainer.accelerator=cpu" in result.out


@pytest.mark.parametrize("target", ["/etc/passwd", "fifo"])
def test_a_network_opens_no_file(target, hostile, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    name = str(tmp_path / target)

    def change(ours: dict) -> None:
        ours["network"] = {"library": "sparsereg", "name": "lenet5", "pretrained": name}

    assert new_network(read_checkpoint(hostile(change))) is not None


@pytest.mark.parametrize(
    "network",
    [
        {"library": "os", "name": "system"},
        {"library": "torchvision", "name": "no such"},
        {"library": "sparsereg", "name": "lenet5", "num_classes": 10**12},
        {"library": "sparsereg", "name": "lenet5", "droprate_init": "0.5"},
        {"library": "sparsereg", "name": "lenet5", "include": [["a"]]},
        {"act_fn_name": "__class__"},
        {"num_classes": True},
        {"without_using_gate": "no", "net": None},
    ],
)
def test_a_network_is_described_by_known_settings(network, hostile):
    path = hostile(lambda ours: ours.update(network=network))
    with pytest.raises(UserError):
        new_network(read_checkpoint(path))


RECORDS = {
    "overrides": ["no list", 5, {"a": 1}, [1], [["a"]]],
    "data": [{}, {"classes": "ab"}, [], None],
    "config": [[], None, "text"],
    "network": [{"image_shape": s} for s in (torch.zeros(3), (3, 16, 16), [3, 1, 1], None)],
}


@pytest.mark.parametrize("part, value", [(k, v) for k, values in RECORDS.items() for v in values])
def test_a_record_of_other_types_is_not_ours(part, value, hostile):
    path = hostile(lambda ours: ours.update({part: value}))
    with pytest.raises(UserError, match="was not written by sparsereg"):
        read_checkpoint(path)


def test_control_characters_are_shown_not_sent(hostile, command):
    title = "\x1b]0;PWNED\x07\nerror: all is well\x9b2J\u202e"
    path = hostile(lambda ours: ours["data"].update(classes=[title] * 10))
    result = command("test.py", f"ckpt_path={path}", "trainer=cpu")
    assert_one_line(result, "\\x1b]0;PWNED\\x07\\nerror: all is well\\x9b2J\\u202e")
    assert printable("Grün 日本 α") == "Grün 日本 α" and len(printable("x" * 10**6)) < 3000


@pytest.mark.slow
def test_training_state_that_does_not_fit(command, lenet5, tmp_path):
    checkpoint = torch.load(lenet5, weights_only=True)
    checkpoint["optimizer_states"][0]["param_groups"].pop()
    path = tmp_path / "last.ckpt"
    torch.save(checkpoint, path)
    more = ("trainer.max_epochs=2", f"output_dir={tmp_path / 'out'}")
    result = command("train.py", f"ckpt_path={path}", "resume_training=true", *more)
    assert_one_line(result, "training state", "cannot be restored")


def test_a_teacher_of_others(hostile, command, tmp_path):
    """It is read as a checkpoint is, under its own key."""
    path = hostile(lambda ours: ours.update(network=None))
    arguments = (*SMALL, f"loss.teacher={path}", f"output_dir={tmp_path / 'out'}")
    assert_one_line(command("train.py", *arguments), f"loss.teacher={path}", "not written by")
    assert not checkpoint_path(tmp_path / "out").exists()
