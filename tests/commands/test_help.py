"""`--help` in words, and Hydra's own flags."""

import re
import runpy
import shlex

import pytest
from conftest import ROOT, assert_one_line, run_process
from omegaconf import OmegaConf

from sparsereg.commands.hints import check_arguments
from sparsereg.commands.overrides import CONFIG

SCRIPTS = ("train.py", "test.py", "compact.py", "predict.py", "report.py")


def settings_of(script: str) -> set[str]:
    """The keys and groups that a script takes: those it names, or all of its file."""
    takes = runpy.run_path(str(ROOT / script)).get("TAKES")
    if takes is not None:
        return {*takes}
    file = CONFIG / script.replace(".py", ".yaml")
    config = OmegaConf.load(file)
    groups = {key for line in config.defaults if not isinstance(line, str) for key in line}
    return {key for key in {*config, *groups} if "hydra" not in key} - {"defaults"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_has_every_key_and_five_examples(script, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    result = command(script, "--help")
    assert result.code == 0 and result.err == ""
    lines = result.out.splitlines()
    assert len(lines) <= 110 and max(map(len, lines)) <= 101
    examples = [line.strip() for line in lines if line.strip().startswith("python ")]
    assert len(examples) >= 5
    for example in examples:
        _, name, *arguments = shlex.split(example, comments=True)
        own = name.removesuffix(".py")
        check_arguments(arguments, own if (CONFIG / f"{own}.yaml").exists() else "train")
    shown = {m[1] for line in lines if (m := re.match(r"  (\w+)=\S+  +\S", line))}
    assert shown == settings_of(script)


@pytest.mark.parametrize(
    "arguments, word",
    [
        ("--cfg lambda_l0=3", "lambda_l0: 3"),
        ("--cfg job --package data", "batch_size: 128"),
        ("-c job --resolve data=digits", "seed: 42"),
        ("--config-dir {conf} experiment=mine --cfg", "lambda_l0: 7"),
        ("-cd {conf} -cn own --cfg", "lambda_l0: 9"),
        ("--shell-completion install=bash", "hydra_bash_completion"),
    ],
)
def test_hydras_own_flags(arguments, word, command, tmp_path):
    (tmp_path / "experiment").mkdir()
    mine = "# @package _global_\nlambda_l0: 7\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(mine)
    (tmp_path / "own.yaml").write_text("defaults:\n  - train\n  - _self_\nlambda_l0: 9\n")
    result = command("train.py", *arguments.format(conf=tmp_path).split())
    assert result.code == 0, result.err
    assert word in result.out


def test_where_settings_come_from():
    """In a process of its own: Hydra then logs all that it does."""
    result = run_process("train.py", "data=digits", "--info", "defaults")
    assert result.code == 0 and "data/digits" in result.out and result.err == ""


def test_completion_of_a_setting(command, monkeypatch):
    line = "python train.py trainer.max_"
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert command("train.py", "-sc", "query=bash").out.strip() == "trainer.max_epochs="


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("--resolve", ["--cfg job --resolve"]),
        ("-m --cfg job", ["one of them at a time"]),
        ("--package", ["--package", "expected one argument"]),
        ("--cfg nonsense", ["'nonsense'", "job"]),
        ("--config-dir nowhere", ["nowhere", "not found"]),
        ("-cn nothing", ["'nothing'"]),
        ("--experimental-rerun job.pickle", ["--experimental-rerun", "resume_training"]),
    ],
)
def test_flags_that_cannot_be_meant_so(arguments, words, command):
    assert_one_line(command("train.py", *arguments.split()), *words)


def test_the_page_names_the_flags():
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for flag in ("--help", "--cfg", "--package", "--resolve", "--info", "--config-dir"):
        assert flag in page
