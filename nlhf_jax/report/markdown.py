"""The report as Markdown, for a pull request or a lab book. Figures are links into figures/."""

import re
import urllib.parse

from nlhf_jax.evaluation.statistics import Estimate, Standing
from nlhf_jax.evaluation.tournament import REFERENCE, PlayerSummary, TournamentResult
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


def render(report: Report) -> str:
    parts = [f"# {_text(report.run)}"]
    parts += [_text(sentence) for sentence in report.verdict]
    parts += [f"> **Warning:** {_text(warning)}" for warning in report.warnings]
    if report.tournament is not None:
        parts += _tournament(report.tournament, report.figures)
    for finding in report.findings:
        parts += _finding(finding)
    if report.stages:
        parts += ["## What was run", _stages(report.stages)]
    for stage in report.stages:
        if curves_file(stage) in report.figures:
            parts.append(_image(f"learning curves of {stage.name}", curves_file(stage)))
    if report.tournament is not None and report.tournament.samples:
        parts += ["## Samples", *_samples(report.tournament)]
    return "\n\n".join(parts) + "\n"


def _tournament(result: TournamentResult, figures) -> list[str]:
    rates = result.win_rates
    matrix = [
        [f"**{_text(row)}**"]
        + [
            "–" if row == column else _with_interval(rates.between(row, column))
            for column in rates.names
        ]
        for row in rates.names
    ]
    parts = [
        "## Who beats whom",
        f"How often the row is preferred to the column, with 95 % intervals ({rates.interval});"
        f" {result.prompts} prompts, judged by: {_text(result.judge)}.",
        _table(["row beats column", *map(_text, rates.names)], matrix),
        "## Policies",
        _table(
            ["", "win rate over the other policies", "win rate over the references",
             "KL from SFT (nats)", "words", "tokens", "distinct", "empty",
             "ROUGE-1", "ROUGE-2", "ROUGE-L"],
            [_player(player, result) for player in result.players],
        ),
    ]  # fmt: skip
    if "win_rate_against_kl.png" in figures:
        parts.append(_image("win rate against KL from SFT", "win_rate_against_kl.png"))
    if result.meta_game is not None:
        parts += ["## The game between the policies", _meta_game(result.meta_game)]
        parts += map(_text, about_meta_game())
    if result.raters:
        parts += ["## How raters predict votes", _text(about_raters(result)), _raters(result)]
    return parts


def _finding(finding: Finding) -> list[str]:
    parts = [f"## {_text(finding.title)}", _text(finding.text)]
    if finding.table:
        header, *rows = ([_text(cell) for cell in row] for row in finding.table)
        parts.append(_table(header, rows))
    return [*parts, _image(finding.title, finding_file(finding))]


def _player(player: PlayerSummary, result: TournamentResult) -> list[str]:
    rates = result.win_rates
    reference = None
    if REFERENCE in rates.names and player.name != REFERENCE:
        reference = rates.between(player.name, REFERENCE)
    kl = "–" if player.kl is None else f"{player.kl:.2f}"
    if player.kl_standard_error is not None:
        kl += f" ± {player.kl_standard_error:.2f}"
    return [
        _text(player.name),
        _with_interval(player.mean_win_rate),
        "–" if reference is None else f"{reference.value:.3f}",
        kl,
        f"{player.mean_words:.1f}",
        "–" if player.mean_tokens is None else f"{player.mean_tokens:.1f}",
        f"{player.distinct:.1%}",
        f"{player.empty:.1%}",
        *("–" if x is None else f"{x:.3f}" for x in (player.rouge1, player.rouge2, player.rougeL)),
    ]


def _meta_game(policies: tuple[Standing, ...]) -> str:
    return _table(
        ["policy", "mass in the Nash average", "win rate over the Nash average", "exploitability",
         "best response"],
        [
            [
                _text(policy.name),
                _with_interval(policy.nash),
                _with_interval(policy.win_rate_over_nash),
                _with_interval(policy.exploitability),
                _text(policy.best_response or "none beats it"),
            ]
            for policy in policies
        ],
    )  # fmt: skip


def _raters(result: TournamentResult) -> str:
    header = ["rater", "accuracy"]
    rows = [[_text(rater.name), _with_interval(rater.accuracy)] for rater in result.raters]
    shares = shares_of_population(result)
    if shares:
        header.append("share of the population's")
        rows = [[*row, f"{share:.3f}"] for row, share in zip(rows, shares, strict=True)]
    return _table(header, rows)


def _stages(stages: tuple[Stage, ...]) -> str:
    rows = []
    for stage in stages:
        last = stage.last("validation") or stage.last("train")
        figures = ", ".join(f"{name} {value:.4g}" for name, value in list(last.items())[:4])
        rows.append(
            [
                _text(stage.name),
                "–" if stage.steps is None else str(stage.steps),
                "–" if stage.seconds is None else duration(stage.seconds),
                _text(figures) or "–",
                _text(", ".join(f"{name} {value:.6g}" for name, value in stage.data.items()))
                or "–",
            ]
        )
    return _table(["stage", "steps", "wall time", "last values", "data"], rows)


def _samples(result: TournamentResult) -> list[str]:
    parts = []
    for number, sample in enumerate(result.samples, start=1):
        rows = [["reference", _text(text)] for text in sample.references]
        for name, text in sample.responses.items():
            score = "" if sample.scores is None else f" ({sample.scores[name]:.2f})"
            rows.append([_text(name) + score, _text(text) or "*(empty)*"])
        quote = "\n".join(f"> {_text(line)}" for line in sample.prompt.splitlines())
        parts += [f"### {number}", quote, _table(["player", "response"], rows)]
    return parts


def _with_interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{estimate.value:.3f} ({estimate.low:.3f}–{estimate.high:.3f})"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _image(name: str, file: str) -> str:
    return f"![{_text(name)}](figures/{urllib.parse.quote(file)})"


def _text(text: str) -> str:
    """Text that Markdown shows as it is, in a table cell too."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", " ".join(text.split()))
