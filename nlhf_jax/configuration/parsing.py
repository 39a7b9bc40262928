"""Configuration by gin, with T5X's manners and errors that say what to change.

A run file has its public macros on top, capitalised; `%gin.REQUIRED` marks those without a sane
default, `--gin.NAME=value` sets one. Library code carries no gin decorators: gin files name modules
(`from __gin__ import dynamic_registration`). One process runs one configuration after another, so
everything starts from an empty one.
"""

import dataclasses
import inspect
import io
import os
import re
import sys
import tokenize
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import gin
from etils import epath
from gin import config as gin_config

from nlhf_jax import locks
from nlhf_jax.configuration import earlier_names
from nlhf_jax.configuration.bindings import (
    MACRO,
    all_bindings,
    bindings_of,
    is_reference,
    macros_mentioned,
)
from nlhf_jax.configuration.checks import (
    check_arguments,
    check_known_macro,
    check_macros_defined,
    check_no_secrets,
    check_nothing_missing,
    check_types,
)
from nlhf_jax.configuration.configured import Settings, settings_of
from nlhf_jax.configuration.messages import reason
from nlhf_jax.errors import UserError, unreadable_is_one_error
from nlhf_jax.files import in_bucket, write_whole

FILE_NAME = "config.gin"
COMMAND_LINE = "command line"
_PACKAGE = Path(__file__).resolve().parents[1]
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
    macros_if_known: Mapping[str, Any] | None = None,
    complete: bool = True,
) -> None:
    """Makes the files' bindings, and then the overrides, the configuration of this process.

    Args:
      gin_files: paths, found from the working directory, the search paths, or the shipped
        `gin_configs`; later files win.
      overrides: "NAME=value" for a macro or "module.function.parameter=value", in gin's syntax.
      macros: values of macros, as Python objects.
      workdir: value of the macro WORKDIR, where a file speaks of it.
      search_paths: more directories in which gin files (and those that they include) are found.
      macros_if_known: values of macros that are set where a file speaks of them; `macros` win.
      complete: refuse a configuration in which a value is missing.

    Raises:
      UserError: a file is missing or malformed; a name is unknown; a value is missing or of the
        wrong type.
    """
    earlier_names.install()
    gin.clear_config()
    gin_config._LOCATION_PREFIXES[:] = ["", *search_paths, *map(str, _SHIPPED)]
    # Gin's second reader, for files inside packages, logs an error for every place without a file.
    gin_config._FILE_READERS[:] = [(open_file, _is_file)]
    for path in gin_files:
        _find_modules_beside(path)
        _parse_file(path)
    known = macros_mentioned()
    shared = {name: v for name, v in (macros_if_known or {}).items() if name in known}
    macros = shared | dict(macros or {})
    if workdir is not None and "WORKDIR" in known:
        macros["WORKDIR"] = workdir
    for name, value in macros.items():
        check_known_macro(name, known)
        gin.bind_parameter((name, MACRO, "value"), value)
    for override in overrides:  # The last binding wins, and that is the command line's.
        name, _, value = override.partition("=")
        check_known_macro(name, known)
        _parse_override(name, value)
    if complete:
        check_macros_defined()
        check_nothing_missing()
    check_no_secrets()
    check_types()


def run(function: Callable[..., Any], workdir: str | os.PathLike, **arguments: Any) -> Any:
    """Calls `function(workdir=workdir, **arguments)` with the rest from the configuration.

    `workdir/config.gin` is the configuration as it was parsed until the call returns; then the
    operative one: all that was used, the code's defaults included. Both can be loaded again. A
    function that takes `configured`, a `Configured`, writes the first one itself once it has found
    that it may. Meanwhile no other run may work in `workdir`, see `locks.held`.
    """
    check_arguments(function, {"workdir", *arguments})
    with locks.held(workdir):
        if "configured" in inspect.signature(function).parameters:
            arguments["configured"] = Configured(function)
        else:
            write(workdir)
        result = _configured(function)(workdir=workdir, **arguments)
        write_whole(epath.Path(workdir) / FILE_NAME, gin.operative_config_str())
    return result


@dataclasses.dataclass(frozen=True)
class Configured:
    """What a job may ask about its own configuration, while it runs.

    Attributes:
      function: the job.
    """

    function: Callable[..., Any]

    def settings(self, free: Collection[str] = ()) -> Settings:
        """All settings that reach the job, see `settings_of`."""
        return settings_of(self.function, free)

    def write(self, workdir: str | os.PathLike) -> None:
        """Writes `workdir/config.gin`."""
        write(workdir)


def arguments(function: Callable[..., Any], given: Sequence[str]) -> dict[str, Any]:
    """What the configuration binds to `function`'s parameters, all of them but those `given`."""
    check_arguments(function, set(given))
    return gin.get_bindings(_configured(function))


def write(workdir: str | os.PathLike) -> None:
    """Writes the configuration to `workdir/config.gin`."""
    write_whole(epath.Path(workdir) / FILE_NAME, text())


def text() -> str:
    """The configuration as a gin file."""
    return gin.config_str()


def speaks_of(name: str) -> bool:
    """Whether the parsed files mention a macro."""
    return name in macros_mentioned()


def find(path: str) -> str:
    """Where a gin file is, by the places that `parse` looks in; raises UserError if nowhere."""
    alone = os.path.isabs(path) or in_bucket(path)
    prefixes = [""] if alone else gin_config._LOCATION_PREFIXES
    for prefix in prefixes:
        if _is_file(os.path.join(prefix, path)):
            return os.path.join(prefix, path)
    searched = ", ".join(prefix or "." for prefix in prefixes)
    raise UserError(f"the gin file {path} does not exist (looked in {searched})")


def open_file(path: str) -> TextIO:
    """A gin file, which may be in a bucket; its `name` is where gin's parser looks for the path."""
    if not in_bucket(path):
        return open(path, encoding="utf-8")
    with unreadable_is_one_error(path, "the gin file"):
        stream = io.StringIO(epath.Path(path).read_text())
    stream.name = path
    return stream


def _is_file(path: str) -> bool:
    if not in_bucket(path):
        return os.path.isfile(path)
    with unreadable_is_one_error(path, "the gin file"):
        return epath.Path(path).is_file()


def shown_path(path: str) -> str:
    """A gin file's path as a user knows it: of those that come with nlhf, from `gin_configs`."""
    for shipped in map(str, _SHIPPED):
        if os.path.abspath(path).startswith(shipped + os.sep):
            return os.path.relpath(path, shipped)
    return path


def macro(name: str) -> Any:
    """The value of a macro, None if it has none."""
    value = bindings_of(MACRO).get(name, {}).get("value")
    return None if is_reference(value) else value


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

    for _, parameters in all_bindings():
        parameters.update({name: walk(value) for name, value in parameters.items()})


def _configured(function: Callable[..., Any]) -> Callable[..., Any]:
    registered = gin_config._inverse_lookup(function)
    return function if registered is None else registered.wrapper


# --- parsing -------------------------------------------------------------------------------------


def _parse_file(path: str) -> None:
    find(path)
    try:
        gin.parse_config_file(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a gin file: it is not text") from error
    except tokenize.TokenError as error:
        what, (line, _) = error.args
        raise UserError(f"{path}, line {line}: {what}; is a bracket or quote left open?") from error
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {reason(error)}") from error
    except RecursionError as error:
        raise UserError(
            f"{path} includes itself, through others perhaps, or is nested too deeply"
        ) from error
    except (
        OSError,
        ImportError,
        LookupError,
        NameError,
        AttributeError,
        ValueError,
        TypeError,
        MemoryError,  # Python's parser, of brackets too deep
    ) as error:
        if "null byte" in str(error) or isinstance(error, MemoryError):
            raise UserError(f"{path} is not a gin file: {reason(error)}") from error
        location = re.search(r'\n  In file "([^"]*)", line (\d+)', str(error))
        if location is None:
            raise  # Not about the file: the code that it imports fails.
        raise UserError(f"{location[1]}, line {location[2]}: {reason(error)}") from error


def _find_modules_beside(path: str) -> None:
    """A gin file may name parts of the user's own, in a module beside it."""
    directory = os.path.dirname(os.path.abspath(path))
    if os.path.isfile(path) and directory not in sys.path:
        sys.path.append(directory)


def _parse_override(name: str, value: str) -> None:
    option = f"--gin.{name}={value}"
    try:
        gin.parse_config(f"{name} = {value}")
    except (SyntaxError, tokenize.TokenError) as error:
        if re.fullmatch(r"[^'\"%@()\[\]{}=]+", value):  # The shell took the quotes away.
            raise UserError(
                f"{option}: a text needs quotes, write --gin.{name}='\"{value}\"'"
            ) from error
        raise UserError(f"{option} is not NAME=value in gin's syntax: {reason(error)}") from error
    except (
        NameError,
        AttributeError,
        ValueError,
        TypeError,
        LookupError,
        ImportError,
        OSError,
        RecursionError,
        MemoryError,
    ) as error:
        raise UserError(f"{option}: {reason(error)}") from error
