"""Whether what was read from a file has the types that its dataclasses say."""

import dataclasses
import math
import types
import typing
from typing import Any

import numpy as np

_MOST = 1 << 53  # beyond it, JSON's numbers are no longer whole


def check_conforms(value: Any) -> None:
    """Raises ValueError, with the field's name, unless a dataclass's fields are of their types.

    Looks inside tuples, dicts and other dataclasses; numbers must be finite, and text such that
    UTF-8 can hold it.
    """
    for name, hint in typing.get_type_hints(type(value)).items():
        if not _fits(getattr(value, name), hint):
            raise ValueError(f"{name} is not as it was written")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, typing.cast(type, hint)):
            return False
        check_conforms(value)
        return True
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        wanted = arguments[:1] * len(value) if Ellipsis in arguments else arguments
        return len(value) == len(wanted) and all(map(_fits, value, wanted))
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(key, arguments[0]) and _fits(item, arguments[1]) for key, item in value.items()
        )
    if hint is str:
        return isinstance(value, str) and value == value.encode("utf-8", "replace").decode()
    if hint in (int, float):
        kinds = (int,) if hint is int else (int, float)
        whole = isinstance(value, kinds) and not isinstance(value, bool)
        return whole and math.isfinite(value) and abs(value) <= _MOST
    if hint is np.ndarray:
        return isinstance(value, np.ndarray) and bool(np.all(np.isfinite(value)))
    return isinstance(value, hint)
