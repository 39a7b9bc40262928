"""What must hold of a configuration before anything runs."""

import inspect
import re
from collections.abc import Callable
from typing import Any

from gin import config as gin_config

from nlhf_jax.configuration.bindings import (
    MACRO,
    all_bindings,
    binding_name,
    bindings_of,
    is_reference,
    macro_of,
    references,
)
from nlhf_jax.configuration.messages import did_you_mean
from nlhf_jax.configuration.value_types import describe_type, fits
from nlhf_jax.errors import UserError


def check_known_macro(name: str, known: set[str]) -> None:
    if not re.fullmatch(r"[\w./]+", name):
        raise UserError(f"--gin.{name} is not a name: write --gin.NAME=value")
    if "." not in name and name not in known:
        raise UserError(
            f"no gin file speaks of the macro {name} that is to be set{did_you_mean(name, known)}"
        )


_SECRET = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)$", re.IGNORECASE)


def check_no_secrets() -> None:
    """A configuration is written to files, shown and reported; keys belong into the environment."""
    for name, parameters in bindings_of(MACRO).items():
        if _SECRET.search(name) and isinstance(parameters.get("value"), str):
            raise UserError(
                f"the macro {name} looks like a secret, and configurations are written to files: "
                "put it into the environment, which is not"
            )


def check_macros_defined() -> None:
    defined = bindings_of(MACRO)
    for where, reference in references():
        name = macro_of(reference)
        if name is not None and name not in defined:
            raise UserError(
                f"{where} is %{name}, but no gin file defines the macro {name}"
                + (did_you_mean(name, defined) or f": set it with --gin.{name}=...")
            )


def check_nothing_missing() -> None:
    missing = [
        where
        for where, reference in references()
        if is_reference(reference, "gin.constant") and reference.scopes == ["gin.REQUIRED"]
    ]
    if missing:
        missing.sort(key=lambda name: "." in name)  # Macros first.
        has = "has no value: set it" if len(missing) == 1 else "have no value: set them"
        options = " ".join(f"--gin.{name}=..." for name in missing)
        raise UserError(f"{', '.join(missing)} {has} with {options}")
    for where, reference in references():
        if reference.evaluate and not reference.selector.startswith("gin."):
            for name in missing_arguments(reference.configurable.wrapped, set()):
                raise UserError(
                    f"{reference.selector}.{name} has no value, and {where} needs "
                    f"@{reference.selector}(): set it in the gin file"
                )


def check_arguments(function: Callable[..., Any], given: set[str]) -> None:
    for name in missing_arguments(function, given):
        raise UserError(f"{function.__name__}.{name} has no value: the gin files do not set it")


def missing_arguments(function: Callable[..., Any], given: set[str]) -> list[str]:
    """Parameters without a default that are neither given nor bound in any scope."""
    try:
        selector = gin_config._inverse_lookup(function).selector
        bound = {name for params in bindings_of(selector).values() for name in params}
    except AttributeError:  # Not registered: no gin file names it.
        bound = set()
    return [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in bound | given
    ]


def check_types() -> None:
    """Compares what is bound with the annotations, as far as both are plain types."""

    def resolve(value: Any) -> Any:
        seen: list[str] = []
        while (name := macro_of(value)) is not None:
            if name in seen:
                raise UserError(f"the macros {', '.join(seen)} are defined by each other")
            seen.append(name)
            if name not in bindings_of(MACRO):
                return value  # an incomplete configuration
            value = bindings_of(MACRO)[name]["value"]
        return value

    for (scope, selector), parameters in all_bindings():
        if selector.startswith("gin."):
            continue
        function = gin_config._REGISTRY[selector].wrapped
        try:
            annotations = inspect.get_annotations(
                function.__init__ if inspect.isclass(function) else function, eval_str=True
            )
        except (NameError, AttributeError, TypeError):
            continue  # Annotations that can only be read by a type checker.
        for name, value in parameters.items():
            annotation = annotations.get(name, Any)
            if not fits(value, annotation, resolve):
                where = binding_name(scope, selector, name)
                source = macro_of(value) or where
                user = f" for {where}" if source != where else ""
                raise UserError(
                    f"{source} is {resolve(value)!r} but must be {describe_type(annotation)}{user}"
                )
