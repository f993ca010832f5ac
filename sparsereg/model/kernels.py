"""kernels.c, compiled by the machine's C compiler at the first use, which takes a second.

torch has no fused BatchNorm with ReLU on a CPU, and its max-pooling writes eight bytes of index for
two of output: in bfloat16 that is a third of a training step. Inductor's code for both is slower
still (docs/performance.md).
"""

import ctypes
import os
import platform
import shlex
import subprocess
import tempfile
from ctypes import POINTER, Structure, c_float, c_long, c_void_p
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
CPUINFO = Path("/proc/cpuinfo")
NEEDED = {"avx512f", "avx512bw", "avx512vl", "avx512_bf16"}  # instructions in kernels.c
# No -fopenmp to the linker: the threads are those of torch, whose OpenMP is loaded already, and not
# a second pool of them that would wait for the same cores.
COMPILE = ("-c", "-O3", "-march=native", "-fopenmp", "-fPIC")


class Part(Structure):
    """Some channels of a tensor: address, values from pixel to pixel, number of channels."""

    _fields_ = (("data", c_void_p), ("step", c_long), ("channels", c_long))


PARTS = POINTER(Part)
SIGNATURES = {
    "batch_norm": [
        *(PARTS, c_long, c_void_p, c_long, c_long),
        *[c_void_p] * 4,
        *[c_float] * 3,
        *[c_void_p] * 2,
    ],
    "batch_norm_backward": [
        *(PARTS, PARTS, c_long, c_void_p, c_long, c_long),
        *[c_void_p] * 4,
        *(c_float, c_void_p, c_void_p),
    ],
    "max_pool": [*[c_void_p] * 4, *[c_long] * 5],
    "max_pool_backward": [*[c_void_p] * 4, *[c_long] * 5],
}


def instructions() -> set[str]:
    """Extensions that this processor has, by their names in Linux; none where they are not said."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    return set(next((line for line in lines if line.startswith("flags")), "").split())


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions; None where they cannot be compiled, see `why_not`."""
    return None if isinstance(found := compiled(), str) else found


def why_not() -> str | None:
    """Why there is no `library`."""
    return found if isinstance(found := compiled(), str) else None


@cache
def compiled() -> ctypes.CDLL | str:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "they are for Linux on x86-64"
    if missing := NEEDED - instructions():
        return f"this processor has no {', '.join(sorted(missing))}"
    compiler = shlex.split(os.environ.get("CC", "cc"))
    with tempfile.TemporaryDirectory() as folder:
        made, linked = Path(folder, "kernels.o"), Path(folder, "kernels.so")
        try:
            for arguments in ((*COMPILE, SOURCE, "-o", made), ("-shared", made, "-o", linked)):
                subprocess.run([*compiler, *arguments], check=True, capture_output=True)
            found = ctypes.CDLL(str(linked))
        except FileNotFoundError:
            return f"there is no C compiler ({compiler[0]}; install gcc, or set CC)"
        except subprocess.CalledProcessError as error:
            return f"{compiler[0]}: {error.stderr.decode(errors='replace').strip()[-200:]}"
        except OSError as error:  # as from a compiler with another OpenMP
            return f"what {compiler[0]} made cannot be loaded: {error}"
    for name, types in SIGNATURES.items():
        function = getattr(found, name)
        function.argtypes, function.restype = types, None
    return found
