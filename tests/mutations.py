"""Changes valid content at random: values, keys, lengths, tensors, bytes."""

import copy
import math
import random
from typing import Any

import torch

NASTY = [
    *(None, True, False, 0, -1, 1, 7, 10**12, 10**400, -(2**63), 1e308, 1e-320, math.nan, math.inf),
    *("", "x" * 5000, "${oc.env:HOME}", "${seed}", "???", "__class__", "a.b", "../../etc/passwd"),
    *("\x1b]0;title\x07", "a\nerror: all is well", "/dev/zero", "os.system", "\ud800", "[red]"),
    *([], {}, [[]], [None], {"": 1}, {1: 2}, {"_target_": "os.system"}, [1, "a"], (1, 2)),
]


def nasty(random_: random.Random) -> Any:
    if random_.random() < 0.15:
        return odd_tensor(random_)
    return copy.deepcopy(random_.choice(NASTY))


def odd_tensor(random_: random.Random) -> torch.Tensor:
    makers = (
        lambda: torch.zeros(1).expand(10**6, 10**6),
        lambda: torch.zeros(0),
        lambda: torch.zeros(2, 3, dtype=torch.complex64),
        lambda: torch.zeros(5, dtype=torch.int64),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.full((4,), math.nan),
    )
    return random_.choice(makers)()


def places(node: Any, path: tuple = ()) -> list[tuple]:
    """The paths of all that a nested table or list holds."""
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list | tuple):
        items = list(enumerate(node))
    else:
        return [path]
    inner = [place for key, item in items for place in places(item, (*path, key))]
    return [path, *inner] if path else inner


def mutate(content: Any, random_: random.Random) -> Any:
    """One to three places replaced, removed, doubled or renamed."""
    content = unfrozen(content)
    for _ in range(random_.randint(1, 3)):
        if not (left := places(content)):
            break
        *above, key = random_.choice(left)
        parent = content
        for part in above:
            parent = parent[part]
        if not isinstance(parent, dict | list) or (isinstance(parent, dict) and key not in parent):
            continue
        how = random_.choice(("replace", "replace", "replace", "remove", "double", "rename"))
        if how == "replace":
            parent[key] = nasty(random_)
        elif how == "remove":
            del parent[key]
        elif isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        elif how == "rename":
            name = random_.choice((*filter(lambda n: isinstance(n, str), NASTY), str(key) + "x"))
            parent[name] = parent.pop(key)
    return content


def unfrozen(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: unfrozen(item) for key, item in node.items()}
    return [unfrozen(item) for item in node] if isinstance(node, list) else node


def flip_bytes(content: bytes, random_: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(random_.randint(1, 4)):
        changed[random_.randrange(len(changed))] = random_.randrange(256)
    return bytes(changed[: random_.randint(1, len(changed))] if random_.random() < 0.3 else changed)
