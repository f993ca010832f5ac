"""Memory that is freed stays with the process."""

import platform
import subprocess
import sys

import pytest
from conftest import ROOT

FAULTS = """
import resource, sys
import numpy as np
from sparsereg.memory import keep_buffers
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
