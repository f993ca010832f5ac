"""L0 regularization of convolutional networks with hard-concrete gates (arXiv 1712.01312)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers
    from sparsereg.checkpoint import load
    from sparsereg.surgery.insert import insert_gates

__version__ = "0.1.0"
__all__ = ["__version__", "insert_gates", "load"]

# imported on use: torch and Lightning take seconds
LATER = {"insert_gates": "sparsereg.surgery.insert", "load": "sparsereg.checkpoint"}


def __getattr__(name: str) -> Any:
    if name not in LATER:
        raise AttributeError(f"module 'sparsereg' has no attribute {name!r}")
    return getattr(import_module(LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *LATER})
