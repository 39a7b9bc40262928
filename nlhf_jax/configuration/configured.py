"""All the settings that reach a function, as names and plain values: what a run is known by."""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from gin import config as gin_config

from nlhf_jax.configuration.bindings import (
    MACRO,
    binding_name,
    bindings_of,
    is_reference,
    macro_of,
)


@dataclasses.dataclass
class Settings:
    """Settings as `module.function.parameter`, with values that JSON knows.

    A scope of the user's own stands before it, as in gin. A function is its name,
    `@module.function()` where its result is meant. What the code has as a default counts as set.

    Attributes:
      values: those that count.
      free: those that the caller named as free, and what is reached through them alone.
      macros: of both, the macro that a setting takes its value from.
      defaults: of both, the defaults in the code.
    """

    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    free: dict[str, Any] = dataclasses.field(default_factory=dict)
    macros: dict[str, str] = dataclasses.field(default_factory=dict)
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)


def settings_of(function: Callable[..., Any], free: Collection[str] = ()) -> Settings:
    """The settings of `function`, of the functions that they name, and so on.

    Args:
      function: of the parsed configuration.
      free: names of settings, see `Settings.free`.
    """
    found = Settings()
    registered = gin_config._inverse_lookup(function)
    if registered is not None:
        _reach(registered, [], frozenset(free), found, found.values)
    found.free = {name: v for name, v in found.free.items() if name not in found.values}
    return found


def _reach(
    configurable: Any,
    scope: list[str],
    free: frozenset[str],
    found: Settings,
    into: dict[str, Any],
) -> None:
    bound: dict[str, Any] = {}
    by_scope = bindings_of(configurable.selector)
    for depth in range(len(scope) + 1):  # an inner scope wins, as when gin calls the function
        bound |= by_scope.get("/".join(scope[:depth]), {})
    defaults = _defaults(configurable.wrapped)
    scopes = "/".join(part for part in scope if part not in bindings_of(MACRO))
    for parameter, value in (defaults | bound).items():
        name = binding_name(scopes, configurable.selector, parameter)
        target = found.free if name.split("/")[-1] in free else into
        if name in target:
            continue  # reached before
        target[name] = None  # a function that is reached through itself ends here
        if parameter in defaults:
            found.defaults[name] = _plain(defaults[parameter], [], free, found, target)
        if (macro := macro_of(value)) is not None:
            found.macros[name] = macro
        target[name] = _plain(value, scope, free, found, target)


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # one that is not written in Python
        return {}
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _plain(
    value: Any, scope: list[str], free: frozenset[str], found: Settings, into: dict[str, Any]
) -> Any:
    """A value as JSON has it; functions in it are reached on the way."""
    if (macro := macro_of(value)) is not None:
        meant = bindings_of(MACRO)[macro]["value"]
        return _plain(meant, value.scopes, free, found, into)
    if is_reference(value):
        configurable = value.configurable
        _reach(configurable, value.scopes or scope, free, found, into)
        name = ".".join(configurable.selector.split(".")[-2:])
        return f"@{name}" + "()" * value.evaluate
    if isinstance(value, Mapping):
        return {str(k): _plain(item, scope, free, found, into) for k, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, scope, free, found, into) for item in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else repr(value)  # JSON knows no NaN
    if callable(value):
        return f"@{value.__module__.split('.')[-1]}.{value.__qualname__}"
    return type(value).__name__  # its representation may be another in every process
