"""L0 regularization of convolutional networks with hard-concrete gates (arXiv 1712.01312).

In a training loop of one's own (docs/your-loop.md): `insert_gates`, `param_groups`, `L0Penalty` or
`TargetSparsity`, and for Lightning `L0Callback`; of the trained network `measure`, `compact`,
`fold`, `export`, `save`, `load` and `predict`.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers
    from sparsereg.checkpoint import load
    from sparsereg.compact import compact, fold
    from sparsereg.export.formats import export, save
    from sparsereg.predictions import predict
    from sparsereg.sparsity.objective import L0Penalty
    from sparsereg.sparsity.size import measure
    from sparsereg.sparsity.target import TargetSparsity
    from sparsereg.surgery.insert import insert_gates
    from sparsereg.training.callback import L0Callback
    from sparsereg.training.schedules import param_groups

__version__ = "0.1.0"

# imported on use: torch and Lightning take seconds
LATER = {
    "L0Callback": "sparsereg.training.callback",
    "L0Penalty": "sparsereg.sparsity.objective",
    "TargetSparsity": "sparsereg.sparsity.target",
    "compact": "sparsereg.compact",
    "export": "sparsereg.export.formats",
    "fold": "sparsereg.compact",
    "insert_gates": "sparsereg.surgery.insert",
    "load": "sparsereg.checkpoint",
    "measure": "sparsereg.sparsity.size",
    "param_groups": "sparsereg.training.schedules",
    "predict": "sparsereg.predictions",
    "save": "sparsereg.export.formats",
}
__all__ = [
    "L0Callback",
    "L0Penalty",
    "TargetSparsity",
    "__version__",
    "compact",
    "export",
    "fold",
    "insert_gates",
    "load",
    "measure",
    "param_groups",
    "predict",
    "save",
]


class CallableModule(ModuleType):
    """A module of the package that is named as its function: once it is imported, `sparsereg.NAME`
    is the module, and calls the function."""

    @property
    def __wrapped__(self) -> Any:  # so that `inspect`, and editors, show its signature
        return __getattr__(self.__name__.rpartition(".")[2])

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        return self.__wrapped__(*arguments, **settings)


def __getattr__(name: str) -> Any:
    if name not in LATER:
        raise AttributeError(f"module 'sparsereg' has no attribute {name!r}")
    return getattr(import_module(LATER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *LATER})
