"""What is bound: gin's tables, which are not public, behind a few functions."""

from collections.abc import Iterator
from typing import Any

from gin import config as gin_config  # its tables of bindings are not public under `gin`

MACRO = "gin.macro"


def all_bindings() -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """((scope, configurable), {parameter: value}); a macro is the scope of `gin.macro`."""
    yield from list(gin_config._CONFIG.items())


def bindings_of(selector: str) -> dict[str, dict[str, Any]]:
    """{scope: {parameter: value}} of one configurable."""
    return {scope: params for (scope, name), params in all_bindings() if name == selector}


def is_reference(value: Any, to: str | None = None) -> bool:
    """Whether a value is an `@reference` or `%MACRO`; with `to`, one to that configurable."""
    return isinstance(value, gin_config.ConfigurableReference) and (
        to is None or value.configurable.selector == to
    )


def macro_of(value: Any) -> str | None:
    """The name NAME if `value` is `%NAME`."""
    return "/".join(value.scopes) if is_reference(value, MACRO) else None


def references() -> Iterator[tuple[str, Any]]:
    """(binding's name, reference) for all references, those inside lists and dicts too."""
    for (scope, selector), parameters in all_bindings():
        for name, value in parameters.items():
            for reference in gin_config.iterate_references([value]):
                yield binding_name(scope, selector, name), reference


def binding_name(scope: str, selector: str, parameter: str) -> str:
    """A binding's name as a user writes it: `NAME` or `scope/module.function.parameter`."""
    if selector == MACRO:
        return scope
    return f"{scope}/" * bool(scope) + f"{'.'.join(selector.split('.')[-2:])}.{parameter}"


def macros_mentioned() -> set[str]:
    used = (macro_of(reference) for _, reference in references())
    return {name for name in used if name is not None} | set(bindings_of(MACRO))
