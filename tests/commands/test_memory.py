"""Memory that is freed stays with the process; what modules have made is no garbage."""

import platform
import subprocess
import sys

import pytest
from conftest import ROOT

FAULTS = """
import resource, sys
import numpy as np
from sparsereg.commands.memory import keep_buffers
if len(sys.argv) > 1:
    keep_buffers()
for step in range(21):
    np.ones(2**23)  # 64 MiB, freed at once
    if step == 0:
        first = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - first)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other allocators have no mallopt and are left alone"
)
def test_freed_memory_is_kept():
    command = [sys.executable, "-c", FAULTS]
    faults, kept = (
        int(subprocess.check_output([*command, *more], cwd=ROOT)) for more in ([], ["keep"])
    )
    assert faults >= 20 and kept < faults / 5


IMPORTS = """
import gc
from sparsereg.commands.memory import importing
frozen = [gc.get_freeze_count()]
for job in range(2):
    with importing():
        assert not gc.isenabled()
        import rich.console
    assert gc.isenabled()
    frozen.append(gc.get_freeze_count())
try:
    with importing():
        import no_such_module
except ImportError:
    assert gc.isenabled()
print(*frozen)
"""


def test_only_a_first_import_is_kept_from_the_search_for_garbage():
    """What later jobs of a sweep leave behind is still found."""
    output = subprocess.check_output([sys.executable, "-c", IMPORTS], cwd=ROOT, text=True)
    before, first, second = map(int, output.split())
    assert before == 0 and first > 1000 and second == first
