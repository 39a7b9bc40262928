"""What a gin file comes to: every setting, where it was set, and what it overrides.

Read from the statements themselves, so it needs neither values for what is required nor the modules
that a file names.
"""

import dataclasses
import io
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gin import config_parser

from nlhf_jax.configuration.parsing import COMMAND_LINE, find, open_file, shown_path

REQUIRED = "%gin.REQUIRED"


class Source(str):
    """A reference as it is written, `%NAME` or `@module.function()`; shown without quotes."""

    def __repr__(self) -> str:
        return str(self)


@dataclasses.dataclass(frozen=True)
class Assignment:
    """One line that sets something.

    Attributes:
      value: a Python value, references in it as `Source`.
      place: "FILE:LINE", or the command line.
      comment: what stands behind it, without the `#`; may be empty.
    """

    value: Any
    place: str
    comment: str = ""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A name with all that set it, the effective assignment last.

    Attributes:
      name: `NAME` of a macro, or `module.function.parameter`.
      assignments: in the order in which gin met them.
    """

    name: str
    assignments: tuple[Assignment, ...]

    @property
    def value(self) -> Any:
        return self.assignments[-1].value

    @property
    def place(self) -> str:
        return self.assignments[-1].place

    @property
    def comment(self) -> str:
        """That of the effective assignment, or else of the last one that has any."""
        return next((a.comment for a in reversed(self.assignments) if a.comment), "")

    @property
    def is_macro(self) -> bool:
        return "." not in self.name

    @property
    def is_required(self) -> bool:
        return self.value == REQUIRED

    @property
    def overridden(self) -> tuple[Assignment, ...]:
        """Earlier assignments, the latest first; a demand for a value is none."""
        return tuple(a for a in reversed(self.assignments[:-1]) if a.value != REQUIRED)


def settings(gin_files: Sequence[str], overrides: Sequence[str] = ()) -> list[Setting]:
    """All settings of the files and the overrides, in the order in which they are first set.

    Args:
      gin_files: paths, found as `configuration.parse` has them found, which must have parsed them.
      overrides: "NAME=value".
    """
    found: dict[str, list[Assignment]] = {}
    for path in gin_files:
        for name, assignment in _assignments(path):
            found.setdefault(name, []).append(assignment)
    for override in overrides:
        name, _, value = override.partition("=")
        for statement in config_parser.ConfigParser(f"{name} = {value}", _Delegate()):
            assignment = Assignment(statement.value, COMMAND_LINE)
            found.setdefault(_name(statement), []).append(assignment)
    return [Setting(name, tuple(assignments)) for name, assignments in found.items()]


def stages(found: Sequence[Setting]) -> list[Mapping[str, Any]]:
    """The entries of `chain.run.stages`; none if the files list none, or a function makes them."""
    for setting in found:
        if setting.name.endswith("chain.run.stages") and isinstance(setting.value, list):
            return list(setting.value)
    return []


class _Delegate(config_parser.ParserDelegate):
    """Keeps references as they are written."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Source:
        return Source(f"@{scoped_configurable_name}" + "()" * evaluate)

    def macro(self, macro_name: str) -> Source:
        return Source(f"%{macro_name}")


def _assignments(path: str) -> Iterator[tuple[str, Assignment]]:
    """Those of a file and of what it includes, in gin's order."""
    with open_file(find(path)) as file:
        text = file.read()
    comments = _comments(text)
    stream = io.StringIO(text)
    stream.name = path  # where gin's parser looks for it
    for statement in config_parser.ConfigParser(stream, _Delegate()):
        if isinstance(statement, config_parser.IncludeStatement):
            yield from _assignments(statement.filename)
        elif isinstance(statement, config_parser.BindingStatement):
            line = statement.location.line_num
            place = f"{shown_path(path)}:{line}"
            yield _name(statement), Assignment(statement.value, place, comments.get(line, ""))


def _name(statement: config_parser.BindingStatement) -> str:
    scope = f"{statement.scope}/" if statement.scope else ""
    argument = f".{statement.arg_name}" if statement.arg_name else ""
    return f"{scope}{statement.selector}{argument}"


def _comments(text: str) -> dict[int, str]:
    """Line -> the comment behind a statement there."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        behind = token.line[: token.start[1]].strip()
        if token.type == tokenize.COMMENT and behind:
            found[token.start[0]] = token.string.lstrip("# ").rstrip()
    return found
