"""`nlhf config`: the settings of gin files for people, as text for a terminal or as Markdown."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nlhf_jax.configuration.effective import Assignment, Setting, stages

_VALUE_WIDTH = 44  # of the column of values; longer ones go on below
_WIDTH = 118


def terminal(found: Sequence[Setting]) -> str:
    """Aligned columns: name, value, place; the comment and what is overridden below."""
    parts = []
    required = [setting for setting in found if setting.is_required]
    if required:
        width = max(len(setting.name) for setting in required)
        parts.append("required: set with --gin.NAME=value")
        parts += [_line(s.name, width, s.comment, s.place) for s in required]
        parts.append("")
    for title, of_title in _groups(found):
        parts.append(title)
        width = min(30, max(len(setting.name) for setting in of_title))
        for setting in of_title:
            parts.append(_line(setting.name, width, _shown(setting.value), setting.place))
            notes = [f"# {setting.comment}"] if setting.comment else []
            notes += [f"overrides {_what(earlier)}" for earlier in setting.overridden]
            for note in notes:
                parts += textwrap.wrap(
                    note, _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 8
                )
        parts.append("")
    if stages(found):
        parts.append("stages")
        parts += [f"  {line}" for line in _stage_lines(found)]
    return "\n".join(parts).rstrip() + "\n"


def markdown(found: Sequence[Setting]) -> str:
    """Tables of the macros and of what is set beside them."""
    parts = []
    for title, of_title in [
        ("required", [setting for setting in found if setting.is_required]),
        *_groups(found),
    ]:
        if not of_title:
            continue
        rows = []
        for setting in of_title:
            meaning = [_escaped(setting.comment)] if setting.comment else []
            meaning += [f"overrides {_escaped(_what(earlier))}" for earlier in setting.overridden]
            value = "" if setting.is_required else f"`{_escaped(_shown(setting.value))}`"
            rows.append((f"`{setting.name}`", value, "; ".join(meaning), f"`{setting.place}`"))
        parts.append(_table((title, "value", "meaning", "set in"), rows))
    found_stages = stages(found)
    if found_stages:
        rows = [
            (_name(stage), stage["job"], f"`{_files(stage)}`", f"`{_macros(stage)}`")
            for stage in found_stages
        ]
        parts.append(_table(("stage", "job", "gin files", "macros"), rows))
    return "\n\n".join(parts) + "\n"


def _groups(found: Sequence[Setting]) -> Iterable[tuple[str, list[Setting]]]:
    """Macros that have a value, and what is set beside them but is not just passed on."""
    macros = [setting for setting in found if setting.is_macro and not setting.is_required]
    others = [
        setting
        for setting in found
        if not setting.is_macro
        and not str(setting.value).startswith("%")
        and not (setting.name.endswith("chain.run.stages") and isinstance(setting.value, list))
    ]
    for title, settings in (("macros", macros), ("beside the macros", others)):
        if settings:
            yield title, settings


def _line(name: str, width: int, value: str, place: str) -> str:
    start = f"  {name:<{width}}  {value:<{_VALUE_WIDTH}}"
    if len(value) <= _VALUE_WIDTH and len(name) <= width:
        return f"{start}  {place}"
    wrapped = textwrap.wrap(value, _WIDTH - 6) or [""]
    lines = [f"  {name}"] + [f"      {line}" for line in wrapped]
    lines[0] = f"{lines[0]:<{width + _VALUE_WIDTH + 4}}  {place}"
    return "\n".join(lines)


def _shown(value: Any) -> str:
    return repr(value)


def _what(earlier: Assignment) -> str:
    return f"{_shown(earlier.value)} of {earlier.place}"


def _stage_lines(found: Sequence[Setting]) -> list[str]:
    entries = stages(found)
    widths = [max(len(stage[key]) for stage in entries) for key in ("name", "job")]
    lines = []
    for stage in entries:
        line = f"{stage['name']:<{widths[0]}}  {stage['job']:<{widths[1]}}  {_files(stage)}"
        lines.append(line.rstrip())
        if "when" in stage:
            lines.append(f"{'':<{widths[0]}}  {'':<{widths[1]}}  {_condition(stage)}")
        if _macros(stage):
            lines.append(f"{'':<{widths[0]}}  {'':<{widths[1]}}  given {_macros(stage)}")
    return lines


def _name(stage: Mapping[str, Any]) -> str:
    return f"{stage['name']} ({_escaped(_condition(stage))})" if "when" in stage else stage["name"]


def _condition(stage: Mapping[str, Any]) -> str:
    return f"only if {stage['when']}, else {stage.get('instead')} stands in"


def _files(stage: Mapping[str, Any]) -> str:
    files = stage.get("gin_file", ())
    return ", ".join([files] if isinstance(files, str) else map(str, files))


def _macros(stage: Mapping[str, Any]) -> str:
    macros = stage.get("macros", "")
    if isinstance(macros, Mapping):
        return ", ".join(f"{name} = {value!r}" for name, value in macros.items())
    return str(macros)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
