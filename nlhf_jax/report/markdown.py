"""The report as Markdown, for a pull request or a lab book. Figures are links into figures/."""

import re
import urllib.parse
from collections.abc import Callable, Sequence

from nlhf_jax.report.contents import Report
from nlhf_jax.report.parts import NOTHING, Cell, Charts, Matrix, Picture, Samples, Table, Text
from nlhf_jax.report.sections import facts, sections


def render(report: Report) -> str:
    """The page; text in it is shown as it is."""
    parts = [f"# {_text(report.run)}", _text(facts(report))]
    parts += [_text(sentence) for sentence in report.verdict]
    parts += [f"> **Warning:** {_text(warning)}" for warning in report.warnings]
    for section in sections(report):
        parts.append(f"## {_text(section.title)}")
        parts += filter(None, (_PRINTERS[type(part)](part) for part in section.parts))
    return "\n\n".join(parts) + "\n"


def _paragraph(part: Text) -> str:
    return _text(part.text)


def _rows(part: Table) -> str:
    return _table(
        list(map(_text, part.header)), [[_cell(cell) for cell in row] for row in part.rows]
    )


def _cell(cell: Cell) -> str:
    note = cell.note if cell.note.startswith("±") or not cell.note else f"({cell.note})"
    text = f"{_text(cell.text)} {_text(note)}".strip()
    return f"**{text}**" if cell.flagged else text


def _matrix(part: Matrix) -> str:
    rates = part.rates

    def cell(row: str, column: str) -> str:
        if row == column:
            return NOTHING
        found = rates.between(row, column)
        value = f"{found.value:.3f}"
        value = f"**{value}**" if rates.is_decided(row, column) else value
        return f"{value} ({found.low:.3f}–{found.high:.3f})"

    rows = [
        [f"**{_text(row)}**", *(cell(row, column) for column in rates.names)] for row in rates.names
    ]
    return _table(["row beats column", *map(_text, rates.names)], rows)


def _picture(part: Picture) -> str:
    return f"![{_text(part.says)}](figures/{urllib.parse.quote(part.file)})"


def _charts(part: Charts) -> str:
    return "\n\n".join(map(_picture, part.pictures))


def _samples(part: Samples) -> str:
    found = [_text(part.about)]
    for number, sample in enumerate(part.samples, start=1):
        rows = [["reference", _text(text)] for text in sample.references]
        for name, text in sample.responses.items():
            score = "" if sample.scores is None else f" ({sample.scores[name]:.2f})"
            rows.append([_text(name) + score, _text(text) or "*(empty)*"])
        quote = "\n".join(f"> {_text(line)}" for line in sample.prompt.splitlines())
        found += [f"### {number}", quote, _table(["player", "response"], rows)]
    return "\n\n".join(found)


_PRINTERS: dict[type, Callable[..., str]] = {
    Text: _paragraph,
    Table: _rows,
    Matrix: _matrix,
    Picture: _picture,
    Charts: _charts,
    Samples: _samples,
}


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(text: str) -> str:
    """Text that Markdown shows as it is, in a table cell and at the beginning of a line too."""
    escaped = re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", " ".join(text.split()))
    # A list's mark, or a line under a heading; numbers are neither.
    return re.sub(r"^(\d*)([.)]|[-+])(?=\s|$|-)|^()(=)", r"\1\3\\\2\4", escaped)
