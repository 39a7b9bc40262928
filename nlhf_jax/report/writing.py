"""The report of a work directory: one HTML file, and the same as JSON, CSV, Markdown and PNG."""

import csv
import io
import itertools
import json
import os
from collections.abc import Sequence

from etils import epath

from nlhf_jax.files import write_whole
from nlhf_jax.report import html as render_html
from nlhf_jax.report import markdown as render_markdown
from nlhf_jax.report.contents import Report, Tournament, read_report

_SPLITS = ("train", "validation")


def write_report(
    workdir: str | os.PathLike, out_dir: str | os.PathLike | None = None
) -> epath.Path:
    """Writes report.html, .json, .csv and .md, and figures/*.png; returns the path of report.html.

    Every file replaces an earlier one as a whole, report.html last.

    Args:
      workdir: of `nlhf run`, or of one training.
      out_dir: where to write; `workdir` if None.

    Raises:
      UserError: the directory is missing or holds nothing to report, or a file in it cannot be
        read.
    """
    source = epath.Path(workdir)
    target = source if out_dir is None else epath.Path(out_dir)
    report = read_report(source)
    (target / "figures").mkdir(parents=True, exist_ok=True)
    for name, image in report.figures.items():
        write_whole(target / "figures" / name, image)
    if report.tournaments:
        write_whole(target / "report.csv", _csv(report.tournaments))
    write_whole(target / "report.json", _json(report))
    write_whole(target / "report.md", render_markdown.render(report))
    write_whole(target / "report.html", render_html.render(report))
    return target / "report.html"


def _json(report: Report) -> str:
    trees = {one.name: json.loads(one.whole.to_json()) for one in report.tournaments}
    tree = {
        "run": report.run,
        "verdict": report.verdict,
        "warnings": report.warnings,
        "stages": [
            {
                "name": stage.name,
                "steps": stage.steps,
                "seconds": stage.seconds,
                "steps_per_second": stage.steps_per_second,
                "data": stage.data,
                "last": {split: stage.last(split) for split in _SPLITS if stage.last(split)},
            }
            for stage in report.stages
        ],
        "findings": [
            {"name": one.name, "title": one.title, "text": one.text, "numbers": one.numbers}
            for one in report.findings
        ],
        "tournament": next(iter(trees.values()), None),
        "other_tournaments": dict(list(trees.items())[1:]),
    }
    return json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _csv(tournaments: Sequence[Tournament]) -> str:
    """The matrices, one cell a line."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["row", "column", "win_rate_of_row", "low", "high", "prompts", "tournament"])
    for one in tournaments:
        rates = one.whole.win_rates
        for row, column in itertools.permutations(rates.names, 2):
            cell = rates.between(row, column)
            numbers = (cell.value, cell.low, cell.high, one.whole.prompts)
            table.writerow([row, column, *numbers, one.name])
    return text.getvalue()
