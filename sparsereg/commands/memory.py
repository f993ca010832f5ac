"""How a command manages its memory."""

import atexit
import ctypes
import gc
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def keep_buffers() -> None:
    """Keep what is freed, for the next step: glibc hands large buffers back to the system and
    faults them in again, page by page, which doubles the time of an augmented batch."""
    if platform.libc_ver()[0] != "glibc":
        return
    m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(m_mmap_threshold, 2**30)
    libc.mallopt(m_trim_threshold, 2**31 - 1)


@contextmanager
def importing() -> Iterator[None]:
    """Do not look for garbage while modules are imported, nor in what they have made: it stays.
    A sixth of the time from `python test.py` to its table."""
    known = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    if len(sys.modules) > known:  # not in the next job of a sweep, which would keep the last one's
        gc.freeze()
        atexit.register(gc.unfreeze)  # else triton's bindings report a leak
