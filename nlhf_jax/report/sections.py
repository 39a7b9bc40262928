"""The sections of a report, once: `html.py` and `markdown.py` only print them.

A new section is one function here, in the list of `sections`. Its parts are texts, tables, the
matrix, pictures and samples; a printer knows one of each kind.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nlhf_jax.evaluation.results import (
    COLLAPSED_BELOW,
    EMPTY_ABOVE,
    REFERENCE,
    PlayerSummary,
    Sample,
    TournamentResult,
)
from nlhf_jax.evaluation.statistics import Estimate, WinRates
from nlhf_jax.metrics import duration
from nlhf_jax.report.contents import (
    Report,
    Stage,
    about_meta_game,
    about_raters,
    curves_file,
    finding_file,
    shares_of_population,
)
from nlhf_jax.report.findings import Finding

NOTHING = "–"


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; a quiet one explains what stands above it."""

    text: str
    quiet: bool = False
    kind = "text"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One value of a table: `note` is its interval or error; `flagged` catches the eye."""

    text: str
    note: str = ""
    flagged: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows under a header; the first column names the row.

    Attributes:
      header: names of the columns.
      rows: cells.
      words: columns, beside the first one, that hold words and not numbers.
      quiet: numbers of rows that are not the point.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: Sequence[int] = ()
    quiet: Sequence[int] = ()
    kind = "table"


@dataclasses.dataclass(frozen=True)
class Matrix:
    """Who beats whom."""

    rates: WinRates
    kind = "matrix"


@dataclasses.dataclass(frozen=True)
class Picture:
    """`file` under figures/; `width` in rem, or None for as wide as it is."""

    file: str
    says: str
    width: int | None = None
    kind = "picture"


@dataclasses.dataclass(frozen=True)
class Samples:
    """Prompts with everybody's responses."""

    samples: Sequence[Sample]
    kind = "samples"


Part = Text | Table | Matrix | Picture | Samples


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    parts: Sequence[Part]


def sections(report: Report) -> list[Section]:
    """All that the report has something to say about, in order."""
    found: list[Section | None] = []
    result = report.tournament
    of_tournament: Sequence[Callable[[TournamentResult, Report], Section | None]]
    of_tournament = (_who_beats_whom, _policies, _meta_game, _raters)
    if result is not None:
        found += [section(result, report) for section in of_tournament]
    found += [_finding(finding) for finding in report.findings]
    found += [_stages(report), _curves(report)]
    if result is not None:
        found += [_samples(result), _how_judged(result)]
    return [section for section in found if section is not None]


def facts(report: Report) -> str:
    """The line below the title."""
    found = []
    if report.tournament is not None:
        policies = len(report.tournament.policies)
        found += [
            f"{policies} {'policy' if policies == 1 else 'policies'}",
            f"{report.tournament.prompts:,} prompts",
            f"judge: {report.tournament.judge}",
        ]
    seconds = [stage.seconds for stage in report.stages if stage.seconds is not None]
    if seconds:
        found.append(f"{duration(sum(seconds))} of wall time")
    return " · ".join(found) or "learning curves"


# --- the tournament ------------------------------------------------------------------------------


def _who_beats_whom(result: TournamentResult, report: Report) -> Section:
    rates = result.win_rates
    return Section(
        "Who beats whom",
        [
            Text(
                "Read along a row: a cell says how often the row is preferred to the column, with"
                f" its 95 % interval ({rates.interval}); bold where that leaves out one half."
            ),
            Matrix(rates),
        ],
    )


def _policies(result: TournamentResult, report: Report) -> Section:
    header = (
        "Player",
        "Win rate over other policies",
        "over the references",
        "KL from SFT (nats)",
        "Words",
        "Tokens",
        "Distinct",
        "Empty",
        "ROUGE-1",
        "ROUGE-2",
        "ROUGE-L",
    )
    rows = [_player(player, result) for player in result.players]
    quiet = [n for n, player in enumerate(result.players) if player.name == REFERENCE]
    parts: list[Part] = [
        Table(header, rows, quiet=quiet),
        Text(
            "Lengths are means per response. ROUGE is F1 against the closest reference, not"
            " stemmed. KL is the mean of log π(y|x) − log μ(y|x) over the sampled responses, ± its"
            f" standard error.{_tempered(result.temperature)}",
            quiet=True,
        ),
    ]
    if "win_rate_against_kl.png" in report.figures:
        says = (
            "Mean win rate of each policy over the others against its KL from SFT; the same figures"
            " as in the table above."
        )
        parts.append(Picture("win_rate_against_kl.png", says, width=44))
    return Section("Policies", parts)


def _tempered(temperature: float | None) -> str:
    """What a temperature other than 1 means for KL."""
    if temperature in (None, 1):
        return ""
    if temperature == 0:
        return (
            " At temperature 0 a policy has one response to a prompt, and its KL is the −log μ(y|x)"
            " of that, μ being at temperature 1."
        )
    return f" π is the policy at temperature {temperature:g}, as it was sampled, and μ is at 1."


def _player(player: PlayerSummary, result: TournamentResult) -> list[Cell]:
    policy = player.name != REFERENCE
    over_reference = None
    if policy and REFERENCE in result.win_rates.names:
        over_reference = result.win_rates.between(player.name, REFERENCE)
    error = player.kl_standard_error
    return [
        Cell(player.name),
        _estimate(player.mean_win_rate),
        _estimate(over_reference),
        Cell(_number(player.kl, ".2f"), "" if error is None else f"± {error:.2f}"),
        Cell(_number(player.mean_words, ".1f")),
        Cell(_number(player.mean_tokens, ".1f")),
        Cell(_number(player.distinct, ".1%"), flagged=policy and player.distinct < COLLAPSED_BELOW),
        Cell(_number(player.empty, ".1%"), flagged=policy and player.empty > EMPTY_ABOVE),
        *(Cell(_number(x, ".3f")) for x in (player.rouge1, player.rouge2, player.rougeL)),
    ]


def _meta_game(result: TournamentResult, report: Report) -> Section | None:
    if result.meta_game is None:
        return None
    header = (
        "Policy",
        "Mass in the Nash average",
        "Win rate over the Nash average",
        "Exploitability",
        "Best response",
    )
    rows = [
        [
            Cell(policy.name),
            _estimate(policy.nash),
            _estimate(policy.win_rate_over_nash),
            _estimate(policy.exploitability),
            Cell(policy.best_response or "none beats it"),
        ]
        for policy in result.meta_game
    ]
    first, *others = map(Text, about_meta_game())
    table = Table(header, rows, words=(4,))
    return Section("The game between the policies", [first, table, *others])


def _raters(result: TournamentResult, report: Report) -> Section | None:
    if not result.raters:
        return None
    header = ["Rater", "Accuracy"]
    rows = [[Cell(rater.name), _estimate(rater.accuracy)] for rater in result.raters]
    shares = shares_of_population(result)
    if shares:
        header.append("Share of the population's")
        rows = [[*row, Cell(f"{share:.3f}")] for row, share in zip(rows, shares, strict=True)]
    title = "How raters predict votes"
    return Section(title, [Text(about_raters(result)), Table(header, rows)])


def _samples(result: TournamentResult) -> Section | None:
    if not result.samples:
        return None
    says = (
        "One response a policy, drawn at the tournament's temperature; prompts spread evenly over"
        " the tournament, not chosen."
    )
    if result.samples[0].scores is not None:
        says += (
            " The number beside a policy's name is the judge's mean preference for this response"
            " over the other policies' responses to the same prompt."
        )
    return Section("Samples", [Text(says), Samples(result.samples)])


def _how_judged(result: TournamentResult) -> Section:
    counted = (
        "Each comparison is one vote; votes are counted and intervals are Clopper-Pearson's, which"
        " cover the true rate in at least 95 of 100 cases."
        if result.votes
        else "Each comparison gives a probability; probabilities are averaged over prompts, and the"
        " intervals come from resampling prompts (bootstrap percentiles)."
    )
    prompts = f"{result.prompts:,} prompts"
    if result.prompts_in_split is not None and result.prompts < result.prompts_in_split:
        prompts += f", drawn from {result.prompts_in_split:,}"
    if result.seed is not None:
        prompts += f" (seed {result.seed})"
    sentences = [
        f"All players answered the same {prompts}, and every pair was judged on each of them. The"
        f" judge: {result.judge}. {counted}"
    ]
    if REFERENCE in result.win_rates.names:
        sentences.append(
            f"The player “{REFERENCE}” hands in one of the human references of a prompt, drawn"
            " evenly. It does not count among the other policies in mean win rates."
        )
    found = result.intransitivity
    if found.policy_share is not None:
        circles = (
            f"{len(found.policy_cycles)} of {found.policy_triples} triples of policies"
            f" ({found.policy_share:.1%}) are cycles"
        )
        if found.response_share is not None:
            circles += (
                f", and so are {found.response_cycles:,} of {found.response_triples:,} triples of"
                f" different responses to one prompt ({found.response_share:.1%})"
            )
        sentences.append(
            circles + ". In a cycle each beats the next, so no single score can rank the three."
        )
    return Section("How it was judged", [Text(sentence) for sentence in sentences])


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
    header = (
        "Stage", "Steps", "Wall time", "Steps / s", "Last on train", "Last on validation", "Data",
    )  # fmt: skip
    rows = [
        [
            Cell(stage.name),
            Cell(_number(stage.steps, ",")),
            Cell(NOTHING if stage.seconds is None else duration(stage.seconds)),
            Cell(_number(stage.steps_per_second, ".2f")),
            _last(stage, "train"),
            _last(stage, "validation"),
            _data(stage.data),
        ]
        for stage in report.stages
    ]
    return Section("What was run", [Table(header, rows, words=(4, 5, 6))])


def _curves(report: Report) -> Section | None:
    pictures = [
        Picture(curves_file(stage), f"Learning curves of {stage.name}")
        for stage in report.stages
        if curves_file(stage) in report.figures
    ]
    return Section("Learning curves", pictures) if pictures else None


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


def _number(value: Any, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _estimate(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell(NOTHING)
    return Cell(f"{estimate.value:.3f}", f"{estimate.low:.3f}–{estimate.high:.3f}")
