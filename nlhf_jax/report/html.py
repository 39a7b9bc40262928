"""The report as one HTML file that needs nothing else: `report.html` prints each kind of part."""

import base64
import hashlib
import math
import re
from collections.abc import Sequence

import jinja2
from markupsafe import Markup

from nlhf_jax.evaluation.results import REFERENCE
from nlhf_jax.report import browser, charts, plots
from nlhf_jax.report.contents import Report, Tournament
from nlhf_jax.report.parts import Samples, Section
from nlhf_jax.report.sections import facts, sections

_RAMP = (0, 0.25, 0.4, 0.5, 0.6, 0.75, 1)
_SAMPLE_BYTES = 4_000_000  # for the browsers of all tournaments: the page stays below 5 MB
_PACKAGE = jinja2.PackageLoader("nlhf_jax.report", ".")


def render(report: Report) -> str:
    """The page; all text in it is escaped."""
    environment = jinja2.Environment(
        loader=_PACKAGE,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def file(name: str) -> str:
        return _PACKAGE.get_source(environment, name)[0]

    found = sections(report)
    browsed = sum(one.browsed is not None for one in report.tournaments)
    scripts = [file("page.js")]
    if browsed:
        scripts += ["\n" + file("browser_data.js") + "\n" + file("browser.js")]
    return environment.get_template("report.html").render(
        run=report.run,
        facts=facts(report),
        verdict=report.verdict,
        warnings=report.warnings,
        standings=[(one.named("").rstrip(": "), _standings(one)) for one in report.tournaments],
        sections=_identified(found),
        ramp=_RAMP,
        style=_style,
        columns=_columns,
        picture=lambda name: base64.b64encode(report.figures[name]).decode("ascii"),
        svg=lambda chart: Markup(charts.svg(chart)),
        marker=lambda series: Markup(charts.marker(series)),
        packed=lambda part: _packed(part, browsed),
        css=Markup(file("report.css")),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
    )


def _packed(part: Samples, browsers: int) -> browser.Packed:
    assert part.browsed is not None
    return browser.pack(part.browsed, _SAMPLE_BYTES // browsers)


def _policy(scripts: Sequence[str]) -> str:
    """A content security policy: these scripts run and no other, and nothing is fetched."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(one).decode()}'" for one in digests)
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {hashes};"
        " base-uri 'none'; form-action 'none'"
    )


def _identified(found: Sequence[Section]) -> list[tuple[str, Section]]:
    """Each section with a name for links to it."""
    named: dict[str, Section] = {}
    for section in found:
        name = re.sub("[^a-z0-9]+", "-", section.title.lower()).strip("-")[:60] or "section"
        while name in named:
            name += "-again"
        named[name] = section
    return list(named.items())


def _standings(one: Tournament) -> list[tuple[str, float, float, float]]:
    """Policies by mean win rate over the others: (name, low, value, high)."""
    rates = [(player.name, player.mean_win_rate) for player in one.result.players]
    rows = [
        (name, rate.low, rate.value, rate.high)
        for name, rate in rates
        if rate is not None and name != REFERENCE
    ]
    return sorted(rows, key=lambda row: -row[2])


def _style(rate: float) -> str:
    """CSS of a cell with this win rate, on a light page and on a dark one."""
    pairs = zip(plots.cell_colors(rate), plots.cell_colors(rate, dark=True), strict=True)
    background, foreground = (f"light-dark({light},{dark})" for light, dark in pairs)
    return f"background:{background};color:{foreground}"


def _columns(responses: int) -> int:
    """At most four side by side, and rows as equal as can be."""
    rows = math.ceil(responses / 4)
    return math.ceil(responses / rows)
