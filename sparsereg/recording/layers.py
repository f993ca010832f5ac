"""What a subclass of one of torch's layers computes, found by trying: often just what torch's does,
perhaps with an activation behind it, with another padding, or with weights that it computes."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torchvision.ops import StochasticDepth

from sparsereg.errors import UserError
from sparsereg.graph.operations import BATCH_NORMS, CONVOLUTIONS, MODULES, is_layer
from sparsereg.model.layers import FrozenBatchNorm, SameConv2d

# by name: the library that has them need not be there
STOCHASTIC_DEPTH = ("timm.layers.drop.DropPath",)
DROPOUTS = {  # functions that are told the mode, and layers that know it
    nn.functional.dropout: nn.Dropout,
    nn.functional.dropout1d: nn.Dropout1d,
    nn.functional.dropout2d: nn.Dropout2d,
    nn.functional.dropout3d: nn.Dropout3d,
    nn.functional.alpha_dropout: nn.AlphaDropout,
    nn.functional.feature_alpha_dropout: nn.FeatureAlphaDropout,
}
LAYERS = (nn.Linear, *CONVOLUTIONS)


def simplify(net: nn.Module) -> None:
    """Give the layers of `net` the class of torch that computes the same. A BatchNorm behind which
    something follows, an activation say, has that as children."""
    for name, module in [*net.named_modules()]:
        if type(module) in MODULES or "forward" in vars(module):
            continue
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        if kind in STOCHASTIC_DEPTH and module.scale_by_keep:
            net.set_submodule(name, StochasticDepth(module.drop_prob or 0.0, "row"))
        elif isinstance(module, BATCH_NORMS) and (own := as_norm(module)):
            module.__class__ = own
        elif isinstance(module, LAYERS) and computes_with_its_weight(module):
            known = (kind for kind in plain_kinds(module) if does_the_same(module, kind.forward))
            if own := next(known, None):
                module.__class__ = own


def behind(module: nn.Module) -> list[nn.Module]:
    """What follows a BatchNorm, see `simplify`."""
    return [*module.children()] if type(module) in BATCH_NORMS else []


def plain_copy(net: nn.Module) -> nn.Module:
    """A copy in eval mode, in which every weight is explicit, and so is what stays in eval mode
    when the network trains.

    Raises:
        UserError: it cannot be copied.
    """
    net = copied(net)
    net.train()
    frozen = [name for name, module in net.named_modules() if not module.training]
    net.eval()
    simplify(net)
    freeze(net, frozen)
    for name, module in [*net.named_modules()]:
        if is_layer(module) and type(module) not in MODULES and (plain := explicit(module)):
            net.set_submodule(name, plain)
    return net


def freeze(net: nn.Module, names: list[str]) -> None:
    for name in names:
        module = net.get_submodule(name)
        if type(module) in BATCH_NORMS:
            module.__class__ = FrozenBatchNorm
        elif type(module) in (*DROPOUTS.values(), StochasticDepth):
            net.set_submodule(name, nn.Identity())
        elif type(module) is nn.RReLU:  # random in training
            net.set_submodule(name, nn.LeakyReLU((module.lower + module.upper) / 2))


def copied(net: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(net)
    except (RuntimeError, TypeError) as error:  # tensors that are results, as hooks on weights
        raise UserError(f"{type(net).__name__} cannot be copied: {error}") from error


def plain_kinds(module: nn.Module) -> list[type[nn.Module]]:
    """The layers that a subclass of one of them may be."""
    kinds = [kind for kind in LAYERS if isinstance(module, kind)]
    return [*kinds, SameConv2d] if isinstance(module, nn.Conv2d) else kinds


def as_norm(module: nn.Module) -> type[nn.Module] | None:
    """The BatchNorm that it is before its children."""
    [own] = [k for k in BATCH_NORMS[:3] if isinstance(module, k)][:1]

    def expected(norm: nn.Module, x: Tensor) -> Tensor:
        y = own.forward(norm, x)
        for child in norm.children():
            y = child(y)
        return y

    return own if does_the_same(module, expected) else None


def does_the_same(module: nn.Module, expected: Callable[[nn.Module, Tensor], Tensor]) -> bool:
    """In training and in eval mode, for images of two sizes, small and large numbers?"""
    first, second = (copy.deepcopy(module).double() for _ in range(2))
    for training in (False, True):
        for each in (first, second):
            each.train(training)
        for size, scale in ((0, 1.0), (1, 1e3)):  # some layers cut off what is large
            x = scale * try_input(module, size)
            try:
                with torch.no_grad(), torch.random.fork_rng(devices=[]):
                    # torch.manual_seed would format a stack trace, for GPUs that are not in use yet
                    torch.default_generator.manual_seed(0)
                    got = first(x.clone())
                    torch.default_generator.manual_seed(0)
                    wanted = expected(second, x.clone())
            except (RuntimeError, ValueError, TypeError, AttributeError):
                return False
            same = isinstance(got, Tensor) and got.shape == wanted.shape
            if not (same and torch.allclose(got, wanted, rtol=1e-10, atol=1e-12)):
                return False
            state = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
            if not all(torch.equal(a, b) for a, b in state):
                return False
    return True


def try_input(module: nn.Module, size: int) -> Tensor:
    """Noise that the layer can take, in double precision."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(module, nn.Linear):
        shape = (3, module.in_features)
    elif isinstance(module, CONVOLUTIONS):
        kernels = zip(module.kernel_size, module.dilation, strict=True)
        shape = (3, module.in_channels, *((k - 1) * d + 2 + size for k, d in kernels))
    else:
        dims = next(n for n in (1, 2, 3) if isinstance(module, BATCH_NORMS[n - 1]))
        shape = (3, module.num_features, *[2 + size] * dims)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


class Calls(TorchFunctionMode):
    """Notes the weights with which convolutions and linear layers are computed."""

    def __init__(self):
        super().__init__()
        self.found: list[tuple[Tensor, Tensor | None]] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in (F.conv1d, F.conv2d, F.conv3d, F.linear):
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            self.found.append((args[1] if len(args) > 1 else kwargs["weight"], bias))
        return func(*args, **kwargs)


def calls_of(module: nn.Module) -> tuple[list[tuple[Tensor, Tensor | None]], Any]:
    """Weight and bias of each convolution or product that a layer in eval mode is, and its result;
    none if it cannot be tried."""
    try:
        with torch.no_grad(), Calls() as calls:
            result = module(try_input(module, 0).to(next(module.parameters())))
    except (RuntimeError, ValueError, TypeError, AttributeError, StopIteration):
        return [], None
    return calls.found, result


def computes_with_its_weight(module: nn.Module) -> bool:
    """False if it certainly computes another one out of it, which is quick to see."""
    if parametrize.is_parametrized(module):
        return False
    module = copy.deepcopy(module).eval()
    own = getattr(module, "weight", None)
    calls, _ = calls_of(module)
    return all(weight is own for weight, _ in calls)


def explicit(module: nn.Module) -> nn.Module | None:
    """A layer of torch that computes what this one does in eval mode, with the weights that it
    computes (weight standardisation, `torch.nn.utils.parametrizations`, masks); None if there is
    none."""
    module = copy.deepcopy(module).eval()
    calls, result = calls_of(module)
    if len(calls) != 1:
        return None
    [(weight, bias)] = calls
    plain = (plain_layer(kind, module, weight, bias) for kind in plain_kinds(module))
    return next((layer for layer in plain if does_the_same_in_eval(module, layer, result)), None)


def computing_layers(net: nn.Module) -> dict[nn.Module, nn.Module]:
    """Layers that `explicit` can make plain, and what it makes of them, without its numbers."""
    layers = (m for m in net.modules() if is_layer(m) and type(m) not in MODULES)
    return {module: plain.to("meta") for module in layers if (plain := explicit(module))}


def plain_layer(
    kind: type[nn.Module], module: nn.Module, weight: Tensor, bias: Tensor | None
) -> nn.Module:
    names = ("in_features", "out_features")
    if kind is not nn.Linear:
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding")
        names += ("dilation", "groups", "padding_mode")
    settings = {name: getattr(module, name) for name in names}
    with torch.device("meta"):  # no numbers of its own
        plain = kind(**settings, bias=bias is not None)
    plain.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().clone())
    return plain.eval()


def does_the_same_in_eval(module: nn.Module, plain: nn.Module, first: Any) -> bool:
    """`first`: the module's result for the smaller of two inputs."""
    for size in (0, 1):
        x = try_input(module, size).to(next(module.parameters()))
        with torch.no_grad():
            a, b = module(x) if size else first, plain(x)
        tolerance = 1e-9 if x.dtype == torch.float64 else 1e-4
        if (
            not isinstance(a, Tensor)
            or a.shape != b.shape
            or not torch.allclose(a, b, rtol=tolerance, atol=tolerance)
        ):
            return False
    return True


def in_eval_mode(module: nn.Module, args: tuple, kwargs: dict) -> Any:
    """Its result where it changes no statistics, which has the same shape."""
    modes = {part: part.training for part in module.modules()}
    try:
        for part in modes:
            part.training = False
        return module.forward(*args, **kwargs)
    finally:
        for part, training in modes.items():
            part.training = training
