"""What one training step is made of: operations, host reads, arithmetic, memory traffic; on a GPU
also kernels and waits of the host."""

import warnings
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import DEVICE
from benchmarks.steps import bound, steps


class Count(TorchDispatchMode):
    """Counts ATen operations that are not views, host reads among them, and bytes of their tensors,
    each read or written once by each operation."""

    def __init__(self):
        super().__init__()
        self.operations = self.host_reads = self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.operations += 1
            self.host_reads += func is torch.ops.aten._local_scalar_dense.default
            tensors = [t for t in tree_leaves((args, kwargs, result)) if torch.is_tensor(t)]
            self.bytes += sum(t.nbytes for t in tensors)
        return result


def kernels(step: Callable[[], None]) -> int:
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events())


def waits(step: Callable[[], None]) -> int:
    """How often the host waits for the device."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def row(name: str, step: Callable[[], None], batch: int) -> dict:
    step()  # compiled, and with the optimizer's state
    with Count() as count:
        step()
    with FlopCounterMode(display=False) as flops:
        step()
    on_gpu = (
        {"kernels": kernels(step), "waits of the host": waits(step)} if DEVICE == "cuda" else {}
    )
    return {
        "way": name,
        "operations": count.operations,
        "host reads": count.host_reads,
        **on_gpu,
        "GFLOP per image": flops.get_total_flops() / batch / 1e9,
        "MB of traffic per image": count.bytes / batch / 1e6,
    }


def run(batch: int = 32) -> list[dict]:
    ways = {name: w for name, w in steps(torch.float32).items() if "compiled" not in name}
    rows = [row(name, step, batch) for name, step in bound(ways, batch).items()]
    return [{"title": f"One training step, {DEVICE}, float32, batch {batch}", "rows": rows}]
