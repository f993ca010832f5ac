"""Every command that the documentation shows is one that works.

A command of the five scripts is run by the script itself, up to the import of torch: then Hydra has
composed its settings, and all checks that come before training have passed. Of other commands it is
checked that they exist and take these arguments. What training does is tested elsewhere.
"""

import argparse
import importlib.util
import re
import shlex
import shutil
import tomllib
from unittest.mock import patch

import pytest
import torch
from conftest import ROOT, run_here, run_process
from torch import nn

from benchmarks.__main__ import PARTS
from benchmarks.network_names import NAMES

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = ("train.py", "test.py", "compact.py", "predict.py", "report.py")
LAUNCHERS = r"hydra/launcher=(joblib|submitit_\w+)|hydra\.launcher\.\w+=\S+"  # none is started here


def blocks(markdown: str, language: str) -> list[str]:
    """Fenced blocks; those without a language hold commands, those of output are marked as text."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", markdown, flags=re.DOTALL | re.MULTILINE)
    return [block for tag, block in fences if tag == language]


def commands(markdown: str) -> list[str]:
    """Commands in blocks, and those within sentences, but for the mere name of a script."""
    sentences = re.sub(r"^```.*?^```$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"`((?:python3?|make|pip|sparsereg-\w+) [^`]+)`", sentences)
    found = [line for line in found if not re.fullmatch(r"python \w+\.py", line)]
    for block in blocks(markdown, ""):
        found += block.replace("\\\n", " ").splitlines()
    parts = [part for line in found for part in line.split("&&")]
    words = [shlex.join(shlex.split(part, comments=True)) for part in parts]
    return [" ".join(word.split()) for word in words if word]


SHOWN = {  # the page that shows it first, of each command
    command: page
    for page in reversed(PAGES)
    for command in commands(page.read_text(encoding="utf-8"))
}


class TorchIsNext(BaseException):
    """Not an Exception, so that the scripts do not explain it."""


@pytest.fixture
def up_to_torch(monkeypatch):
    def stop(*arguments):
        raise TorchIsNext

    monkeypatch.setattr("sparsereg.commands.memory.importing", stop)
    monkeypatch.setattr("sparsereg.runs.find.find_runs", stop)
    monkeypatch.setattr("sparsereg.runs.results_page.write_results", stop)


@pytest.fixture
def places(pruned, tmp_path, monkeypatch) -> dict[str, str]:
    """What the words in capitals stand for, in a folder that has nothing but the models."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").symlink_to(ROOT / "models")
    run = tmp_path / "run"
    for name in ("last.ckpt", "best.ckpt", "best_compact/compact.pt"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pruned, run / name)
    checkpoint = str(run / "best.ckpt")
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 1\n")
    files = dict.fromkeys(("DENSE", "GATES", "COMPACT", "WEIGHTS"), checkpoint)
    return files | {"RUN": str(run), "PATH": str(tmp_path), "OUTPUT_DIR": str(tmp_path)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*declarative_base")  # Optuna's use of SQLAlchemy
@pytest.mark.parametrize("shown", SHOWN, ids=[f"{p.stem}: {c}" for c, p in SHOWN.items()])
def test_command(shown, places, up_to_torch, capfd):
    capitals = rf"(?<![\w-])({'|'.join(places)})(?![\w-])"
    words = shlex.split(re.sub(capitals, lambda match: places[match[1]], shown))
    while re.fullmatch(r"[A-Z_]+=\d+", words[0]):  # an environment variable before the command
        del words[0]
    check(words)
    assert "warning" not in capfd.readouterr().err.lower()


def check(words: list[str]) -> None:
    match words:
        case ["python", script, *arguments] if script in SCRIPTS:
            check_script(script, arguments)
        case [name, *arguments] if name in installed_commands():
            check_script(f"{name.removeprefix('sparsereg-')}.py", arguments)
        case ["python", "-m", module, *arguments]:
            check_module(module, arguments)
        case ["python", "-c", code]:
            exec(code)
        case ["python", script]:
            assert script.startswith("docs/figures/") and (ROOT / script).exists()
        case ["make", *targets]:
            check_make(targets)
        case ["pip", "install", *arguments]:
            check_pip(arguments)
        case ["sbatch", script, *arguments]:
            assert (ROOT / script).exists()
            check_script("train.py", arguments)
        case ["tensorboard", "--logdir", _]:
            assert importlib.util.find_spec("tensorboard")
        case ["pytest"] | ["python3", "-m", "venv", ".venv"] | [".", ".venv/bin/activate"]:
            pass
        case _:
            pytest.fail(f"an unknown command: {shlex.join(words)}")


def check_script(script: str, arguments: list[str]) -> None:
    if "--info" in arguments:  # Hydra then logs all that it does, for the rest of the process
        assert run_process(script, *arguments).code == 0
        return
    if "--help" in arguments or "--cfg" in arguments:
        assert run_here(script, *arguments) == 0
        return
    here = [argument for argument in arguments if not re.fullmatch(LAUNCHERS, argument)]
    with pytest.raises(TorchIsNext):
        code = run_here(script, *here)
        pytest.fail(f"exit code {code}")


def check_module(module: str, arguments: list[str]) -> None:
    name = f"{module}.__main__" if (ROOT / module).is_dir() else module
    assert importlib.util.find_spec(name)
    if module == "benchmarks":
        assert set(arguments) <= PARTS.keys()
    elif module == "benchmarks.networks":
        assert {argument.partition(":")[0] for argument in arguments} <= NAMES.keys()
    elif module.startswith("experiments."):
        stop = patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop)
        with stop, pytest.raises(TorchIsNext):
            importlib.import_module(module).main(arguments)
    else:  # benchmarks.tables and docs.figures take files
        assert all((ROOT / argument).exists() for argument in arguments)


def parse_and_stop(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    _, unknown = parser.parse_known_args(arguments)
    assert not unknown
    raise TorchIsNext


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        target, is_setting, _ = word.partition("=")
        pattern = rf"^{target} \?=" if is_setting else rf"^{target}:.*## "
        assert re.search(pattern, makefile, flags=re.MULTILINE), word


def check_pip(arguments: list[str]) -> None:
    known = {"-e", "-r", "--require-hashes", "."}
    for argument in arguments:
        if extra := re.fullmatch(r"\.\[(\w+)\]", argument):
            assert extra[1] in project()["setuptools"]["dynamic"]["optional-dependencies"]
        else:
            assert argument in known or (ROOT / argument).exists(), argument


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]


def installed_commands() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return set(tomllib.loads(text)["project"]["scripts"])


@pytest.mark.parametrize("page", ["README.md", "docs/compact.md"])
def test_python(page, tmp_path, monkeypatch):
    """That of docs/your-network.md has a test of its own, and so has what needs no sparsereg."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
    net = nn.Sequential(*layers, nn.LazyLinear(5))
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 3])
    net(images)  # the last layer now knows its width
    names = {"net": net, "images": images, "labels": labels, "criterion": nn.CrossEntropyLoss()}
    names |= {"names": [*"abcde"], "mean": 3 * [0.5], "std": 3 * [0.5], "image_shape": (3, 32, 32)}
    names["steps"] = 100
    monkeypatch.chdir(tmp_path)
    shown = blocks((ROOT / page).read_text(encoding="utf-8"), "python")
    [block] = [block for block in shown if "import sparsereg\n" in block]
    exec(compile(block, page, "exec"), names)
    expected = names["net"].eval()(images)
    for name in names.keys() & {"small", "fast"}:
        torch.testing.assert_close(names[name].eval()(images), expected)
    if "loss" in names:
        names["loss"].backward()
        assert any(p.grad is not None for n, p in names["net"].named_parameters() if "qz_loga" in n)
