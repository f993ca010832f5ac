"""One question about each network of `grammar`: with gates, cut, folded, stored and loaded, does it
compute the same, and are its parameters and multiply-adds those that were predicted? It may also be
refused, by a UserError.

    PYTHONPATH=.:tests python tests/judge.py FIRST_SEED NUMBER
"""

import copy
import sys
import tempfile
import warnings
from collections import Counter

import torch
from grammar import make
from torch import Tensor, nn

from sparsereg.compact import Collapsed, compact, fold
from sparsereg.errors import UserError
from sparsereg.export.formats import export
from sparsereg.model.basic_l0_blocks import deterministic_gate, gate_layers
from sparsereg.sparsity.cost import ExpectedCost
from sparsereg.surgery.insert import place_gates
from sparsereg.surgery.plain_graph import build, check_savable, describe

EXPORTED = 50  # one network in so many is exported too, which takes seconds
SHARES = (0.7, 0.4)  # of the gates that are open


def counted(net: nn.Module, x: Tensor) -> dict[str, int]:
    """Parameters and multiply-adds, by hooks."""
    macs = []

    def note(module, _, result):
        macs.append(result.numel() // len(x) * module.weight[0].numel())

    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    handles = [m.register_forward_hook(note) for m in net.modules() if isinstance(m, kinds)]
    net(x)
    for handle in handles:
        handle.remove()
    return {"params": sum(p.numel() for p in net.parameters()), "macs": sum(macs)}


def largest(expected: Tensor, found: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6)).item()


@torch.no_grad()
def judge(seed: int, shares: tuple[float, ...] = SHARES) -> str:
    """exact, refused: …, or what is wrong."""
    net, x = make(seed)
    coupled, behind = seed % 3 > 0, seed % 2 > 0
    try:
        gated, _ = place_gates(
            copy.deepcopy(net), coupled=coupled, behind_barriers=behind, example=x[:1]
        )
        check_savable(gated)
        cost = ExpectedCost(gated, tuple(x.shape[1:]))
    except UserError as error:
        return f"refused: {error}"
    gated, net = gated.double().eval(), net.eval()
    gates = gate_layers(gated)
    for gate in gates.values():
        gate.qz_loga.fill_(10.0)
    if (error := largest(net(x), gated(x))) > 1e-9:
        return f"wrong: with open gates {error:.0e}"
    for share in shares:
        for gate in gates.values():
            is_open = torch.rand(len(gate.qz_loga)) < share
            gate.qz_loga.copy_(torch.where(is_open, torch.randn(len(is_open)), -10.0))
        is_open = deterministic_gate(torch.cat([g.qz_loga for g in gates.values()])) > 0
        try:
            small = compact(gated)
        except Collapsed:
            continue
        except UserError as error:
            return f"wrong: refused when it is cut: {error}"
        if wrong := differences(gated, small, x):
            return wrong
        predicted, found = cost.count(is_open), counted(small, x)
        is_whole = all((deterministic_gate(g.qz_loga) > 0).any() for g in gates.values())
        is_exact = is_whole and not cost.blocked(is_open)  # see ExpectedCost
        if is_exact and any(found[name] != predicted[name] for name in found):
            return f"wrong: counts {found}, predicted {predicted}"
    if seed % EXPORTED == 0:
        return exported(gated, x)
    return "exact"


def differences(gated: nn.Module, small: nn.Module, x: Tensor) -> str | None:
    expected = gated(x)
    rebuilt = build(describe(small)).double().eval()
    rebuilt.load_state_dict(small.state_dict())
    for name, other in (("cut", small), ("folded", fold(small)), ("stored", rebuilt)):
        if (error := largest(expected, other(x))) > 1e-9:
            return f"wrong: {name} {error:.0e}"
    return None


def exported(gated: nn.Module, x: Tensor) -> str:
    """By torch.export and ONNX, which compares the logits itself."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            export(gated.float(), x.shape[1:], folder)
        except UserError as error:
            return f"refused: {error}"
        except RuntimeError as error:
            return f"wrong: exported: {error}"
    return "exact"


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    first, number = map(int, sys.argv[1:])
    verdicts = Counter()
    for seed in range(first, first + number):
        try:
            verdict = judge(seed)
        except Exception as error:
            verdict = f"wrong: {type(error).__name__}: {error}"
        verdicts[verdict.partition(":")[0]] += 1
        if verdict != "exact":
            print(seed, verdict[:400], flush=True)
    print(dict(verdicts))


if __name__ == "__main__":
    main()
