"""Networks that are built unlike GoogleNet, by name."""

import torch
from networks import Net, conv, head, randomise
from torch import nn
from torch.nn import functional as F

from sparsereg.model.basic_l0_blocks import L0Gate


def make(compute) -> nn.Module:
    """A network of some of these layers, in which channels have uncommon statistics.

    a, c, d, e, f: 3x3 convolutions of the image; b: of 6 channels; mixN: 1x1 of N; headN: pooling
    and a linear layer; gate, otherN: gates of 6 and N channels.
    """
    torch.manual_seed(0)
    layers = {
        **{"a": conv(3, 6), "c": conv(3, 6), "d": conv(3, 4), "e": conv(3, 6, act=nn.GELU)},
        **{"f": conv(3, 4, act=nn.Tanh), "b": conv(6, 5, act=nn.Tanh), "back": conv(5, 6)},
        **{"gate": L0Gate(6), **{f"other{n}": L0Gate(n) for n in (3, 4, 5, 6, 10, 16)}},
        **{"leaky": nn.LeakyReLU(), "gelu": nn.GELU(), "average": nn.AvgPool2d(2)},
        **{"norm": nn.BatchNorm2d(6), "plain_norm": nn.BatchNorm2d(6, affine=False)},
        **{"depthwise": nn.Conv2d(6, 6, 3, padding=1, groups=6), "maximum": nn.MaxPool2d(3, 2, 1)},
        **{f"mix{n}": conv(n, 8, 1) for n in (10, 14, 16, 20)},
        **{f"head{n}": head(n) for n in (5, 6, 8, 10, 11)},
        **{"linear": nn.Linear(5 * 2 * 2, 4), "bare": nn.Conv2d(3, 6, 3, bias=False)},
    }
    multilayer = nn.Sequential(
        *(nn.Flatten(), nn.Linear(3 * 8 * 8, 9), nn.Tanh(), L0Gate(9), nn.Linear(9, 8)),
        *(nn.BatchNorm1d(8), nn.LeakyReLU(), L0Gate(8), nn.Linear(8, 4)),
    )
    return randomise(Net(compute, **layers, multilayer=multilayer).double().eval())


def cat(*tensors):
    return torch.cat(tensors, 1)


def read_before(n, x):
    return n.head11(cat(n.b(n.gate(n.leaky(y := n.bare(x)))), y))


def residual_block(n, x):
    y = n.a(x)
    return n.head6(y + n.other6(n.back(n.other5(n.b(n.gate(n.norm(n.depthwise(y))))))))


def addition_in_place(n, x):
    y = n.a(x)
    y += n.back(n.other5(n.b(n.gate(n.c(x)))))
    return n.head6(y)


def gate_on_both(n, x):
    return n.head8(n.mix16(n.other16(cat(y := n.a(x), n.d(x), y))))


def cats_of_cats(n, x):
    y = n.gate(n.e(x))
    return n.head8(n.mix20(cat(n.other4(n.d(x)), cat(n.f(x), y), y)))


def pools(n, x):
    y = n.average(n.other5(n.b(n.gate(n.maximum(n.e(x))))))
    return n.linear(torch.flatten(y, start_dim=1))


def functions_and_methods(n, x):
    x = n.gate(F.leaky_relu(n.bare(x), negative_slope=0.3))
    x = n.other5(F.max_pool2d(n.b[0](x), kernel_size=3, stride=2, padding=1).tanh())
    return n.linear(F.adaptive_avg_pool2d(F.gelu(x), output_size=2).reshape(x.size(0), -1))


def norm_between_gates(n, x):
    return n.head8(n.mix10(cat(n.d(x), n.other6(n.norm(n.gate(n.a(x)))))))


NETWORKS = {
    "no gate": lambda n, x: n.head10(cat(n.a(x), n.d(x))),
    "gate after a cat": lambda n, x: n.head8(n.mix10(n.other10(cat(n.d(x), n.a(x))))),
    "gated and ungated": lambda n, x: n.head8(n.mix10(torch.cat([n.d(x), n.gate(n.e(x))], dim=1))),
    "twice in a cat": lambda n, x: n.head8(n.mix16(cat(y := n.gate(n.a(x)), n.d(x), y))),
    "twice, behind gelu": lambda n, x: n.head8(n.mix16(cat(y := n.gate(n.e(x)), n.d(x), y))),
    "gate after twice in a cat": gate_on_both,
    "cats of cats": cats_of_cats,
    "also read directly": lambda n, x: n.head11(cat(n.b(n.gate(y := n.a(x))), y)),
    "also read by a layer": lambda n, x: n.head11(cat(n.b(y := n.e(x)), n.gate(y))),
    "also read before the activation": read_before,
    "gate after an addition": lambda n, x: n.head5(n.b(n.gate(n.a(x) + n.c(x)))),
    "gates before an addition": lambda n, x: n.head5(n.b(n.gate(n.a(x)) + n.other6(n.c(x)))),
    "addition in place": addition_in_place,
    "residual block": residual_block,
    "hidden linear layers": lambda n, x: n.multilayer(x),
    "depthwise": lambda n, x: n.head5(n.b(n.depthwise(n.a(x)))),
    "gate before depthwise": lambda n, x: n.head5(n.b(n.depthwise(n.gate(n.a(x))))),
    "gate behind depthwise": lambda n, x: n.head5(n.b(n.gate(n.norm(n.depthwise(n.a(x)))))),
    "BatchNorm after a gate": lambda n, x: n.head5(n.b(n.norm(n.gate(n.a(x))))),
    "BatchNorm after a gate, behind gelu": lambda n, x: n.head5(n.b(n.norm(n.gate(n.e(x))))),
    "BatchNorm between gates": norm_between_gates,
    "BatchNorm without weights": lambda n, x: n.head5(n.b(n.gate(n.plain_norm(n.bare(x))))),
    "gelu after a gate": lambda n, x: n.head5(n.b(n.gelu(n.gate(n.e(x))))),
    "leaky relu after a gate": lambda n, x: n.head5(n.b(n.leaky(n.gate(n.e(x))))),
    "pools": pools,
    "functions and methods": functions_and_methods,
    "gate on the image": lambda n, x: n.head6(n.gate(n.a(n.other3(x)))),
    "gate at the end": lambda n, x: n.gate(n.a(x)),
    "gate on the logits": lambda n, x: n.other4(n.head6(n.a(x))),
}
