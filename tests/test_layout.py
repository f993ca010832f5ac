"""The house: small folders, imports without circles, commands and runs without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "sparsereg"
FOLDERS = [PACKAGE, *sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))]
MOST = 12  # files that one can take in at a glance


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in PACKAGE.rglob("*.py")}


def imports_at_load(file: Path) -> set[str]:
    """The modules of the package that a module imports when it is loaded, not within functions."""
    found, body = set(), list(ast.parse(file.read_text(encoding="utf-8")).body)
    while body:
        node = body.pop()
        if isinstance(node, ast.ImportFrom):
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                found.add(name)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Try):
            body += node.body
    return found & MODULES.keys()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_has_at_most_twelve_files(folder):
    assert len(list(folder.glob("*.py"))) <= MOST


def test_each_file_of_tests_has_its_own_name():
    """pytest imports them by it."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    assert sorted(names) == sorted({*names})


def test_no_import_runs_in_a_circle():
    waiting = {name: imports_at_load(file) - {name} for name, file in MODULES.items()}
    assert any("sparsereg.checkpoint" in imported for imported in waiting.values())
    while free := [name for name, imported in waiting.items() if not imported]:
        for name in free:
            del waiting[name]
        for imported in waiting.values():
            imported.difference_update(free)
    assert not waiting, "each of these waits for another of them"


@pytest.mark.parametrize("folder", ["commands", "runs"])
def test_without_torch(folder):
    """In a fresh interpreter, all modules of the folder at once."""
    modules = [name for name in MODULES if name.startswith(f"sparsereg.{folder}.")]
    program = f"import sys, {', '.join(modules)}\nprint('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True)
    assert result.stdout == b"False\n", result.stderr.decode()
