"""How a command starts: what it imports, and how its memory is managed."""

import ctypes
import platform
from unittest.mock import patch

UNUSED = ("matplotlib", "scipy", "torchvision")  # by torchmetrics, for metrics of sound and images


def import_lightning() -> None:
    """Import Lightning, a second or two faster: torchmetrics, which it imports, believes that the
    packages of `UNUSED` are not installed."""
    from lightning_utilities.core import imports

    available, met = imports.package_available, imports.RequirementCache.__bool__

    def is_available(name: str) -> bool:
        return name not in UNUSED and available(name)

    def is_met(cache: imports.RequirementCache) -> bool:
        return not str(cache.requirement).startswith(UNUSED) and met(cache)

    with (
        patch.object(imports, "package_available", is_available),
        patch.object(imports.RequirementCache, "__bool__", is_met),
    ):
        import torchmetrics  # noqa: F401
    import pytorch_lightning  # noqa: F401


def keep_buffers() -> None:
    """Keep what is freed, for the next step: glibc hands large buffers back to the system and
    faults them in again, page by page, which doubles the time of an augmented batch."""
    if platform.libc_ver()[0] != "glibc":
        return
    m_trim_threshold, m_mmap_threshold = -1, -3  # of malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(m_mmap_threshold, 2**30)
    libc.mallopt(m_trim_threshold, 2**31 - 1)
