"""The wheel is enough: configuration, commands and all modules, without the checkout."""

import ast
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, SMALL
from test_your_network import BLOCKS, write_images

import sparsereg

SCRIPTS = ("train", "test", "compact", "predict", "report")
SOURCES = ("sparsereg", "pyproject.toml", "README.md", "LICENSE", "NOTICE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, because setuptools writes beside what it builds."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    scripts = [f"{name}.py" for name in SCRIPTS]
    for path in (*SOURCES, *scripts, *(p.name for p in ROOT.glob("requirements*.txt"))):
        source, target = ROOT / path, copy / path
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(copy))
    [file] = out.iterdir()
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """`bin` of an environment with the wheel, and of what it needs a link to what is here."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    python = folder / "bin" / "python"
    pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "here.pth").write_text(str(Path(pytest.__file__).parents[1]))
    return python.parent


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def run(bin: Path, name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [bin / name, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_wheel_has_every_module_and_setting(wheel):
    files = [p for p in (ROOT / "sparsereg").rglob("*") if p.suffix in (".py", ".yaml", ".typed")]
    expected = {str(path.relative_to(ROOT)) for path in files}
    expected |= {f"sparsereg_scripts/{name}.py" for name in SCRIPTS}
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert found == expected
        [info] = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
        metadata = PathDistribution(zipfile.Path(archive, f"{info}/")).metadata
    assert metadata["Version"] == sparsereg.__version__
    extras = set(metadata.get_all("Provides-Extra"))
    assert extras == {"export", "sweeps", "trackers", "timm", "dev"}
    needed = metadata.get_all("Requires-Dist")
    assert any(line.startswith("torch>=") for line in needed)
    assert any(
        line.startswith("wandb") and "extra == 'dev'" in line.replace('"', "'") for line in needed
    )


@pytest.mark.slow
def test_your_network_without_the_checkout(installed, tmp_path):
    write_images(tmp_path / "images")
    where = "print(sparsereg.__file__)"
    (tmp_path / "script.py").write_text("\n".join([*BLOCKS, where]))
    result = run(installed, "python", "script.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"(59|60)\.\d% fewer multiply-adds", result.stdout), result.stdout
    assert (tmp_path / "compact.onnx").exists()
    assert result.stdout.splitlines()[-1].startswith(str(installed.parent))


@pytest.mark.slow
def test_the_installed_commands(installed, tmp_path):
    """Of the five one that is mistaken, one that trains, and one that reads what that has left."""
    wrong = run(installed, "sparsereg-test", "ckpt_pth=x", cwd=tmp_path)
    assert wrong.returncode == 1 and "did you mean 'ckpt_path'?" in wrong.stderr
    wrong = run(installed, "sparsereg-compact", cwd=tmp_path)
    assert wrong.returncode == 1 and "ckpt_path=… is needed" in wrong.stderr
    trained = run(installed, "sparsereg-train", *SMALL, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    report = run(installed, "sparsereg-report", cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert (tmp_path / "outputs" / "report" / "report.html").exists()


def test_names_that_editors_complete():
    """What is imported on use is in dir(), and the type checker is told the same."""
    tree = ast.parse(Path(sparsereg.__file__).read_text(encoding="utf-8"))
    told = {
        name.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("sparsereg")
        for name in node.names
    }
    assert told == sparsereg.LATER
    assert set(sparsereg.__all__) == {"__version__", *told} <= set(dir(sparsereg))
    assert all(callable(getattr(sparsereg, name)) for name in told)
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        sparsereg.laod  # noqa: B018, it is reading the name that raises


@pytest.mark.parametrize("name", ["compact", "export"])
def test_a_module_that_is_named_as_its_function(name):
    """It calls the function, whether it has been imported or not."""
    function = getattr(importlib.import_module(sparsereg.LATER[name]), name)
    module = importlib.import_module(f"sparsereg.{name}")
    assert getattr(sparsereg, name) is module is not function
    assert inspect.signature(module) == inspect.signature(function)
    with pytest.raises(TypeError, match=rf"^{name}\(\) missing"):
        getattr(sparsereg, name)()
    assert sparsereg.__getattr__(name) is function, "before it is imported"


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == sparsereg.__version__
    assert f"## {sparsereg.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    papers = [reference["identifiers"][0]["value"] for reference in citation["references"]]
    assert papers == ["arXiv:1712.01312", "arXiv:2208.04425", "arXiv:1409.4842"]
