"""The commands import what they need, and no more."""

import platform
import subprocess
import sys

import pytest
from conftest import ROOT

PROGRAM = """
import sys
from sparsereg.start_up import import_lightning
import_lightning()
import pytorch_lightning, torchmetrics
from lightning_utilities.core.imports import RequirementCache, package_available
print(*(name in sys.modules for name in ("pytorch_lightning", "scipy.signal", "matplotlib")))
print(bool(RequirementCache("scipy")), package_available("torchvision"))
"""


def test_lightning_comes_without_what_nobody_uses():
    out = subprocess.check_output([sys.executable, "-c", PROGRAM], cwd=ROOT, text=True)
    assert out.split() == ["True", "False", "False", "True", "True"], "and nothing stays patched"


FAULTS = """
import resource, sys
import numpy as np
from sparsereg.start_up import keep_buffers
if len(sys.argv) > 1:
    keep_buffers()
for step in range(21):
    np.ones(2**23)  # 64 MiB, freed at once
    if step == 0:
        first = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - first)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc is asked to")
def test_freed_memory_is_kept():
    command = [sys.executable, "-c", FAULTS]
    faults, kept = (
        int(subprocess.check_output([*command, *more], cwd=ROOT)) for more in ([], ["keep"])
    )
    assert faults >= 20 and kept < faults / 5
