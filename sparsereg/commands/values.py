"""What the value of a setting may be: (check, the words for it)."""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from omegaconf import OmegaConf

SMALLEST, LARGEST = 1.2e-38, 3.4e38  # of float32: below it is 0, above it is infinite
INT32 = 2**31
AMOUNT_TEXT = r"(\d{1,12}(?:\.\d{1,12})?)([kKMG]?)"
UNITS = {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}
MANY = 1000  # items of a list, characters of a text
Check = Callable[[Any], bool]


def is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not is_bool(value)
    return is_real and -LARGEST <= value <= LARGEST


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not is_bool(value) and 1 <= value < INT32


def is_zero(value: Any) -> bool:
    return is_number(value) and value == 0


def is_positive(value: Any) -> bool:
    return is_number(value) and value >= SMALLEST


def is_plain(value: Any) -> bool:
    """A value that stands for itself, as one out of a file must: no interpolation, no nesting."""
    if isinstance(value, list | dict):
        items = [*value, *value.values()] if isinstance(value, dict) else value
        plain = (is_plain(item) and not isinstance(item, list | dict) for item in items)
        return len(value) <= MANY and all(plain)
    if isinstance(value, str):
        return "${" not in value and value != "???" and len(value) <= MANY
    return value is None or isinstance(value, bool | int | float)


def is_plain_table(value: Any) -> bool:
    """One plain value for each of several names."""
    if not isinstance(value, dict) or len(value) > MANY:
        return False
    items = [*value.keys(), *value.values()]
    return all(is_plain(item) and not isinstance(item, list) for item in items)


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) or OmegaConf.is_list(value)


def is_group(value: Any) -> bool:
    """Settings of a class, as an option of a group has them."""
    return isinstance(value, dict) or OmegaConf.is_dict(value)


def is_list_of(check: Check, value: Any) -> bool:
    return is_list(value) and all(check(item) for item in value)


def is_range(value: Any, highest: float = LARGEST) -> bool:
    """Two numbers, [low, high]."""
    if not (is_list_of(is_positive, value) and len(value) == 2):
        return False
    return value[0] <= value[1] <= highest


def is_interval(value: Any) -> bool:
    """Two numbers of any sign, [low, high]."""
    return is_list_of(is_number, value) and len(value) == 2 and value[0] < value[1]


def is_rising(value: Any) -> bool:
    """Several shares, each above the one before."""
    if not is_list_of(INSIDE_0_1[0], value) or len(value) < 2:
        return False
    return all(low < high for low, high in pairwise(value))


def is_devices(value: Any) -> bool:
    if isinstance(value, str):
        return value in ("auto", "-1") or value.isdigit()
    return value == -1 or is_count(value) or (is_list_of(is_index, value) and len(value) > 0)


def is_index(value: Any) -> bool:
    return is_zero(value) or is_count(value)


def is_amount(value: Any) -> bool:
    """A whole number, perhaps with k or M behind it: 100k, 1.5M."""
    if isinstance(value, str):
        return re.fullmatch(AMOUNT_TEXT, value) is not None and amount(value) >= 1
    return is_number(value) and value >= 1


def amount(value: int | float | str) -> int:
    """The number that an amount stands for."""
    if not isinstance(value, str):
        return int(value)
    number, unit = re.fullmatch(AMOUNT_TEXT, value).groups()
    return round(float(number) * UNITS[unit])


def or_null(check: Check) -> Check:
    return lambda value: value is None or check(value)


def one_of(names: Sequence, words: str | None = None) -> tuple[Check, str]:
    known = [name for name in names]
    return (
        lambda v: any(type(v) is type(name) and v == name for name in known),
        words or "one of " + ", ".join(map(str, known)),
    )


def by_layer(kind: tuple[Check, str]) -> tuple[Check, str]:
    """One value for all layers, or {pattern of their names: value}."""
    check, words = kind

    def check_all(value: Any) -> bool:
        if not is_group(value):
            return check(value)
        return len(value) > 0 and all(is_text(k) and check(v) for k, v in value.items())

    return check_all, f"{words}, or {{layers: number, …}}"


GROUP = (is_group, "left as it is")
GROUP_OR_NULL = (or_null(is_group), "left as it is, or null")
BOOL = (is_bool, "true or false")
BOOL_OR_NULL = (or_null(is_bool), "true, false or null")
COUNT = (is_count, "a whole number of at least 1")
COUNT_OR_NULL = (or_null(is_count), "a whole number of at least 1, or null")
COUNT_OR_0 = (is_index, "a whole number of at least 0")
POSITIVE = (is_positive, "a positive number")
POSITIVE_OR_NULL = (or_null(is_positive), "a positive number, or null")
NOT_NEGATIVE = (lambda v: is_number(v) and v >= 0, "a number of at least 0")
NOT_NEGATIVE_OR_NULL = (or_null(NOT_NEGATIVE[0]), "a number of at least 0, or null")
INSIDE_0_1 = (lambda v: is_positive(v) and v < 1, "above 0 and below 1")
SHARE = (lambda v: is_positive(v) and v <= 1, "above 0 and at most 1")
FROM_0_BELOW_1 = (lambda v: is_number(v) and 0 <= v < 1, "from 0 to below 1")
AMOUNT_OR_NULL = (or_null(is_amount), "a number of at least 1, like 100000, 100k or 20M, or null")
SEED = (
    lambda v: is_zero(v) or (isinstance(v, int) and not is_bool(v) and 0 < v < 2**32),
    "a whole number from 0 to 4294967295",
)
TEXT = (is_text, "a path")
TEXT_OR_NULL = (or_null(is_text), "a path, or null")
PATTERNS = (lambda v: is_text(v) or is_list_of(is_text, v), "names of layers, with * and ?")
LIMIT = (
    or_null(lambda v: is_count(v) or (is_positive(v) and v <= 1)),
    "a number of batches, a share in (0, 1], or null",
)
DEVICES = (is_devices, "a whole number of at least 1, or auto")
