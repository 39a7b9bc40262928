"""Whether a configured value is of the type that a function's annotation asks for."""

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

_LISTS = (list, tuple, Sequence, Iterable)
_DICTS = (dict, Mapping)


def fits(value: Any, annotation: Any, resolve: Callable[[Any], Any] = lambda value: value) -> bool:
    """Whether `value` may be passed where `annotation` is asked for.

    Doubt counts as yes: only plain types (numbers, strings, lists, dicts, literals, None, and
    unions of them) are compared. A list does for a tuple, and an int for a float.

    Args:
      value: what is configured.
      annotation: a type, as in a function's signature.
      resolve: turns a reference into the value that it stands for; what is still no plain value
        fits everything.
    """
    value = resolve(value)
    if not isinstance(value, (bool, int, float, str, bytes, list, tuple, dict, type(None))):
        return True
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(fits(value, argument, resolve) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (bool, str, bytes):
        return isinstance(value, annotation)
    if annotation in _DICTS or origin in _DICTS:
        return isinstance(value, dict) and all(
            fits(key, arguments[0], resolve) and fits(item, arguments[1], resolve)
            for key, item in (value.items() if arguments else ())
        )
    if annotation in _LISTS or origin in _LISTS:
        if not isinstance(value, (list, tuple)):
            return False
        if origin is tuple and Ellipsis not in arguments:
            return len(value) == len(arguments) and all(
                fits(item, argument, resolve)
                for item, argument in zip(value, arguments, strict=True)
            )
        return not arguments or all(fits(item, arguments[0], resolve) for item in value)
    return True


def describe_type(annotation: Any) -> str:
    """The annotation in words: `int or None`, `a list of str`, `one of 'a' and 'b'`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(map(describe_type, arguments))
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if annotation is type(None):
        return "None"
    if annotation in _LISTS or origin in _LISTS:
        return "a list" + (f" of {describe_type(arguments[0])}" if arguments else "")
    if annotation in _DICTS or origin in _DICTS:
        of = f" from {describe_type(arguments[0])} to {describe_type(arguments[1])}"
        return "a dict" + (of if arguments else "")
    return getattr(annotation, "__name__", str(annotation))
