"""A processor that computes sixteen channels at once, and is never busy."""

import pytest
from torch import nn

from sparsereg.budgets.clock import Clock, Shape
from sparsereg.budgets.latency import input_sizes, widths_of

VECTOR = 16
BETWEEN = 1.5, 0.02  # what whole networks take: times their layers, and milliseconds on top


def layer_ms(shape: Shape, c_in: int, c_out: int) -> float:
    positions = shape.size[0] * shape.size[1] if shape.size else 1
    blocks = -(-c_in // VECTOR) * -(-c_out // VECTOR)
    area = shape.kernel[0] * shape.kernel[1] if shape.kernel else 1
    return 1e-4 + 1e-6 * positions * area * blocks


def network_ms(net: nn.Module, image_shape: tuple) -> float:
    layers = {n: m for n, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    sizes = input_sizes(net, list(layers), image_shape)
    times = [layer_ms(Shape.of(m, sizes[n]), *widths_of(m)) for n, m in layers.items()]
    return BETWEEN[0] * sum(times) + BETWEEN[1]


def take_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure on it instead of on this machine."""

    def networks(self, nets: dict[str, nn.Module], image_shape: tuple) -> dict[str, float]:
        return {name: network_ms(net, image_shape) for name, net in nets.items()}

    monkeypatch.setattr(Clock, "networks", networks)
    monkeypatch.setattr(Clock, "layers", lambda self, points: {p: layer_ms(*p) for p in points})
