"""The sections of a report, once: `html.py` and `markdown.py` only print them.

A new section is one function here, or in `tournament_sections.py`, in the list of `sections`.
"""

from collections.abc import Mapping

from nlhf_jax.metrics import duration
from nlhf_jax.report import curves, tournament_sections
from nlhf_jax.report.contents import Report, Stage, finding_file
from nlhf_jax.report.findings import Finding
from nlhf_jax.report.parts import NOTHING, Cell, Part, Picture, Section, Table, Text, number


def sections(report: Report) -> list[Section]:
    """All that the report has something to say about, in order."""
    found: list[Section | None] = []
    found += [_finding(finding) for finding in report.findings]
    for one in report.tournaments:
        found += tournament_sections.outcome(one, report.figures)
    found += [curves.section(report), _stages(report)]
    for one in report.tournaments:
        found += tournament_sections.behind_it(one)
    return [section for section in found if section is not None]


def facts(report: Report) -> str:
    """The line below the title."""
    found = []
    if len(report.tournaments) > 1:
        found.append(f"{len(report.tournaments)} tournaments")
    elif report.tournaments:
        result = report.tournaments[0].result
        policies = len(result.policies)
        found += [
            f"{policies} {'policy' if policies == 1 else 'policies'}",
            f"{result.prompts:,} prompts",
            f"judge: {result.judge}",
        ]
    seconds = [stage.seconds for stage in report.stages if stage.seconds is not None]
    if seconds:
        found.append(f"{duration(sum(seconds))} of wall time")
    return " · ".join(found) or "learning curves"


# --- findings and stages -------------------------------------------------------------------------


def _finding(finding: Finding) -> Section:
    parts: list[Part] = [Text(finding.text), Picture(finding_file(finding), finding.title)]
    if finding.table:
        header, *rows = finding.table
        parts.append(Table(header, [list(map(Cell, row)) for row in rows]))
    return Section(finding.title, parts)


def _stages(report: Report) -> Section | None:
    if not report.stages:
        return None
    header = [
        "Stage", "Steps", "Wall time", "Steps / s", "Last on train", "Last on validation", "Data",
    ]  # fmt: skip
    rows = [
        [
            Cell(stage.name),
            Cell(number(stage.steps, ",")),
            Cell(NOTHING if stage.seconds is None else duration(stage.seconds)),
            Cell(number(stage.steps_per_second, ".2f")),
            _last(stage, "train"),
            _last(stage, "validation"),
            _data(stage.data),
        ]
        for stage in report.stages
    ]
    words = [4, 5, 6]
    if any(stage.began_at for stage in report.stages):
        header.append("Began at")
        rows = [
            [*row, Cell(stage.began_at or "random parameters" if stage.steps else NOTHING)]
            for row, stage in zip(rows, report.stages, strict=True)
        ]
        words.append(7)
    return Section("What was run", [Table(header, rows, words=words)])


def _last(stage: Stage, split: str) -> Cell:
    return _values(dict(list(stage.last(split).items())[:4]), ".4g")


def _values(values: Mapping[str, float], form: str) -> Cell:
    named = (f"{name}\N{NO-BREAK SPACE}{value:{form}}" for name, value in values.items())
    return Cell(", ".join(named) or NOTHING)


def _data(data: Mapping[str, float]) -> Cell:
    """Examples, texts cut with their share, and what else a training says about its data."""
    values = dict(data)
    named = []
    for name in data:
        share = values.pop(f"{name}_share", None)
        if name in values:
            note = "" if share is None else f" ({share:.1%})"
            named.append(f"{name}\N{NO-BREAK SPACE}{values[name]:.6g}{note}")
    return Cell(", ".join(named) or NOTHING)
