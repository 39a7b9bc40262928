"""The report as one HTML file that needs nothing else: `report.html` prints each kind of part."""

import base64
import math

import jinja2

from nlhf_jax.report import plots
from nlhf_jax.report.contents import Report
from nlhf_jax.report.sections import facts, sections

_RAMP = (0, 0.25, 0.4, 0.5, 0.6, 0.75, 1)


def render(report: Report) -> str:
    """The page; all text in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nlhf_jax.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        run=report.run,
        facts=facts(report),
        verdict=report.verdict,
        warnings=report.warnings,
        sections=sections(report),
        ramp=_RAMP,
        style=_style,
        columns=_columns,
        picture=lambda file: base64.b64encode(report.figures[file]).decode("ascii"),
    )


def _style(rate: float) -> str:
    """CSS of a cell with this win rate."""
    background, foreground = plots.cell_colors(rate)
    return f"background:{background};color:{foreground}"


def _columns(responses: int) -> int:
    """At most four side by side, and rows as equal as can be."""
    rows = math.ceil(responses / 4)
    return math.ceil(responses / rows)
