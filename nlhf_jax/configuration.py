"""Configuration by gin, with T5X's manners and errors that say what to change.

A run file has its public macros on top, capitalised; `%gin.REQUIRED` marks those without a sane
default, `--gin.NAME=value` sets one. Library code carries no gin decorators: gin files name modules
(`from __gin__ import dynamic_registration`). One process runs one configuration after another, so
everything starts from an empty one.
"""

import difflib
import inspect
import os
import re
import sys
import tokenize
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gin
from gin import config as gin_config  # its tables of bindings are not public under `gin`

from nlhf_jax.errors import UserError
from nlhf_jax.files import write_whole
from nlhf_jax.value_types import describe_type, fits

FILE_NAME = "config.gin"
_MACRO = "gin.macro"
_PACKAGE = Path(__file__).resolve().parent
# Where gin files are found after the working directory and --gin_search_paths: inside the installed
# package, or beside it in a checkout.
_SHIPPED = (_PACKAGE / "gin_configs", _PACKAGE.parent / "gin_configs")


def parse(
    gin_files: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    macros: Mapping[str, Any] | None = None,
    workdir: str | None = None,
    search_paths: Sequence[str] = (),
) -> None:
    """Makes the files' bindings, and then the overrides, the configuration of this process.

    Args:
      gin_files: paths, found from the working directory, the search paths, or the shipped
        `gin_configs`; later files win.
      overrides: "NAME=value" for a macro or "module.function.parameter=value", in gin's syntax.
      macros: values of macros, as Python objects.
      workdir: value of the macro WORKDIR, where a file speaks of it.
      search_paths: more directories in which gin files (and those that they include) are found.

    Raises:
      UserError: a file is missing or malformed; a name is unknown; a value is missing or of the
        wrong type.
    """
    gin.clear_config()
    gin_config._LOCATION_PREFIXES[:] = ["", *search_paths, *map(str, _SHIPPED)]
    # Gin's second reader, for files inside packages, logs an error for every place without a file.
    del gin_config._FILE_READERS[1:]
    for path in gin_files:
        _parse_file(path)
    known = _macros_mentioned()
    macros = dict(macros or {})
    if workdir is not None and "WORKDIR" in known:
        macros["WORKDIR"] = workdir
    for name, value in macros.items():
        _check_known_macro(name, known)
        gin.bind_parameter((name, _MACRO, "value"), value)
    for override in overrides:  # The last binding wins, and that is the command line's.
        name, _, value = override.partition("=")
        _check_known_macro(name, known)
        _parse_override(name, value)
    _check_macros_defined()
    _check_nothing_missing()
    _check_types()


def run(function: Callable[..., Any], workdir: str | os.PathLike, **arguments: Any) -> Any:
    """Calls `function(workdir=workdir, **arguments)` with the rest from the configuration.

    `workdir/config.gin` is the configuration as it was parsed until the call returns; then the
    operative one: all that was used, the code's defaults included. Both can be loaded again.
    """
    _check_arguments(function, {"workdir", *arguments})
    write(workdir)
    result = _configured(function)(workdir=workdir, **arguments)
    write_whole(Path(workdir) / FILE_NAME, gin.operative_config_str())
    return result


def arguments(function: Callable[..., Any], given: Sequence[str]) -> dict[str, Any]:
    """What the configuration binds to `function`'s parameters, all of them but those `given`."""
    _check_arguments(function, set(given))
    return gin.get_bindings(_configured(function))


def write(workdir: str | os.PathLike) -> None:
    """Writes the configuration to `workdir/config.gin`."""
    write_whole(Path(workdir) / FILE_NAME, text())


def text() -> str:
    """The configuration as a gin file."""
    return gin.config_str()


def macro(name: str) -> Any:
    """The value of a macro, None if it has none."""
    value = _bindings(_MACRO).get(name, {}).get("value")
    return None if _is_reference(value) else value


def replace_strings(replace: Callable[[str], str]) -> None:
    """Puts `replace(string)` for every string that is bound, inside lists and dicts too."""

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return replace(value)
        if isinstance(value, (list, tuple)):
            return type(value)(walk(item) for item in value)
        if isinstance(value, dict):
            return {walk(key): walk(item) for key, item in value.items()}
        return value

    for _, parameters in _all_bindings():
        parameters.update({name: walk(value) for name, value in parameters.items()})


def message(error: BaseException) -> str:
    """What an error says, without the lines about the call that gin appends to it."""
    return str(error).split("\n  In call to configurable ")[0].split("\n  No values supplied by")[0]


# --- parsing -------------------------------------------------------------------------------------


def _parse_file(path: str) -> None:
    prefixes = [""] if os.path.isabs(path) else gin_config._LOCATION_PREFIXES
    if not any(os.path.isfile(os.path.join(prefix, path)) for prefix in prefixes):
        searched = ", ".join(prefix or "." for prefix in prefixes)
        raise UserError(f"the gin file {path} does not exist (looked in {searched})")
    try:
        gin.parse_config_file(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a gin file: it is not text") from error
    except tokenize.TokenError as error:
        what, (line, _) = error.args
        raise UserError(f"{path}, line {line}: {what}; is a bracket or quote left open?") from error
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {_reason(error)}") from error
    except (OSError, ImportError, NameError, AttributeError, ValueError, TypeError) as error:
        location = re.search(r'\n  In file "([^"]*)", line (\d+)', str(error))
        if location is None:
            raise  # Not about the file: the code that it imports fails.
        raise UserError(f"{location[1]}, line {location[2]}: {_reason(error)}") from error


def _parse_override(name: str, value: str) -> None:
    option = f"--gin.{name}={value}"
    try:
        gin.parse_config(f"{name} = {value}")
    except (SyntaxError, tokenize.TokenError) as error:
        if re.fullmatch(r"[^'\"%@()\[\]{}=]+", value):  # The shell took the quotes away.
            raise UserError(
                f"{option}: a text needs quotes, write --gin.{name}='\"{value}\"'"
            ) from error
        raise UserError(f"{option} is not NAME=value in gin's syntax: {_reason(error)}") from error
    except (NameError, AttributeError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{option}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Gin's reason in one line, with a suggestion where there is one."""
    reason = (error.msg if isinstance(error, SyntaxError) else str(error)).strip().split("\n")[0]
    reason = " ".join(reason.rstrip(".").split())
    if match := re.match(r"Configurable '(.+)' doesn't have a parameter named '(.+)'", reason):
        parameters = inspect.signature(gin.get_configurable(match[1])).parameters
        return f"{match[1]} has no parameter {match[2]!r}{_did_you_mean(match[2], parameters)}"
    if match := re.search(r"<module '([\w.]+)'.*> has no attribute (\w+)", reason):
        names = [name for name in dir(sys.modules[match[1]]) if not name.startswith("_")]
        return f"{match[1]} has no {match[2]!r}{_did_you_mean(match[2], names)}"
    if match := re.match(r"No configurable matching '(.+)'", reason):
        names = {selector.rpartition(".")[2] for (_, selector), _ in _all_bindings()}
        name = match[1].rpartition(".")[2]
        return f"nothing in the gin files is called {match[1]!r}{_did_you_mean(name, names)}"
    if match := re.match(r"Unable to open file: (.+?)\. Searched config paths", reason):
        return f"the gin file {match[1]} does not exist"
    return reason


def _did_you_mean(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


# --- checks --------------------------------------------------------------------------------------


def _all_bindings() -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """((scope, configurable), {parameter: value}); a macro is the scope of `gin.macro`."""
    yield from list(gin_config._CONFIG.items())


def _bindings(selector: str) -> dict[str, dict[str, Any]]:
    """{scope: {parameter: value}} of one configurable."""
    return {scope: params for (scope, name), params in _all_bindings() if name == selector}


def _is_reference(value: Any, to: str | None = None) -> bool:
    """Whether a value is an `@reference` or `%MACRO`; with `to`, one to that configurable."""
    return isinstance(value, gin_config.ConfigurableReference) and (
        to is None or value.configurable.selector == to
    )


def _macro_of(value: Any) -> str | None:
    """The name NAME if `value` is `%NAME`."""
    return "/".join(value.scopes) if _is_reference(value, _MACRO) else None


def _references() -> Iterator[tuple[str, Any]]:
    """(binding's name, reference) for all references, those inside lists and dicts too."""
    for (scope, selector), parameters in _all_bindings():
        for name, value in parameters.items():
            for reference in gin_config.iterate_references([value]):
                yield _binding_name(scope, selector, name), reference


def _binding_name(scope: str, selector: str, parameter: str) -> str:
    """A binding's name as a user writes it: `NAME` or `scope/module.function.parameter`."""
    if selector == _MACRO:
        return scope
    return f"{scope}/" * bool(scope) + f"{'.'.join(selector.split('.')[-2:])}.{parameter}"


def _macros_mentioned() -> set[str]:
    used = {_macro_of(reference) for _, reference in _references()} - {None}
    return used | set(_bindings(_MACRO))


def _check_known_macro(name: str, known: set[str]) -> None:
    if not re.fullmatch(r"[\w./]+", name):
        raise UserError(f"--gin.{name} is not a name: write --gin.NAME=value")
    if "." not in name and name not in known:
        raise UserError(
            f"no gin file speaks of the macro {name} that is to be set{_did_you_mean(name, known)}"
        )


def _check_macros_defined() -> None:
    defined = _bindings(_MACRO)
    for where, reference in _references():
        name = _macro_of(reference)
        if name is not None and name not in defined:
            raise UserError(
                f"{where} is %{name}, but no gin file defines the macro {name}"
                + (_did_you_mean(name, defined) or f": set it with --gin.{name}=...")
            )


def _check_nothing_missing() -> None:
    missing = [
        where
        for where, reference in _references()
        if _is_reference(reference, "gin.constant") and reference.scopes == ["gin.REQUIRED"]
    ]
    if missing:
        missing.sort(key=lambda name: "." in name)  # Macros first.
        has = "has no value: set it" if len(missing) == 1 else "have no value: set them"
        options = " ".join(f"--gin.{name}=..." for name in missing)
        raise UserError(f"{', '.join(missing)} {has} with {options}")
    for where, reference in _references():
        if reference.evaluate and not reference.selector.startswith("gin."):
            for name in _missing_arguments(reference.configurable.wrapped, set()):
                raise UserError(
                    f"{reference.selector}.{name} has no value, and {where} needs "
                    f"@{reference.selector}(): set it in the gin file"
                )


def _check_arguments(function: Callable[..., Any], given: set[str]) -> None:
    for name in _missing_arguments(function, given):
        raise UserError(f"{function.__name__}.{name} has no value: the gin files do not set it")


def _missing_arguments(function: Callable[..., Any], given: set[str]) -> list[str]:
    """Parameters without a default that are neither given nor bound in any scope."""
    try:
        selector = gin_config._inverse_lookup(function).selector
        bound = {name for params in _bindings(selector).values() for name in params}
    except AttributeError:  # Not registered: no gin file names it.
        bound = set()
    return [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in bound | given
    ]


def _check_types() -> None:
    """Compares what is bound with the annotations, as far as both are plain types."""

    def resolve(value: Any) -> Any:
        seen = []
        while (name := _macro_of(value)) is not None:
            if name in seen:
                raise UserError(f"the macros {', '.join(seen)} are defined by each other")
            seen.append(name)
            value = _bindings(_MACRO)[name]["value"]
        return value

    for (scope, selector), parameters in _all_bindings():
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
                where = _binding_name(scope, selector, name)
                source = _macro_of(value) or where
                user = f" for {where}" if source != where else ""
                raise UserError(
                    f"{source} is {resolve(value)!r} but must be {describe_type(annotation)}{user}"
                )


def _configured(function: Callable[..., Any]) -> Callable[..., Any]:
    registered = gin_config._inverse_lookup(function)
    return function if registered is None else registered.wrapper
