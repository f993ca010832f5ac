"""How a command manages its memory."""

import ctypes
import platform


def keep_buffers() -> None:
    """Keep what is freed, for the next step: glibc hands large buffers back to the system and
    faults them in again, page by page, which doubles the time of an augmented batch."""
    if platform.libc_ver()[0] != "glibc":
        return
    m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(m_mmap_threshold, 2**30)
    libc.mallopt(m_trim_threshold, 2**31 - 1)
