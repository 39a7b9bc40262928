"""The report as one HTML file that needs nothing beside it: styles inside, pictures as base64."""

import base64
import importlib.resources
import math
import string
from collections.abc import Mapping
from html import escape

from nlhf_jax.evaluation.statistics import Estimate
from nlhf_jax.evaluation.tournament import (
    COLLAPSED_BELOW,
    EMPTY_ABOVE,
    REFERENCE,
    PlayerSummary,
    Sample,
    TournamentResult,
)
from nlhf_jax.metrics import duration
from nlhf_jax.report import plots
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
    page = importlib.resources.files(__package__).joinpath("report.html").read_text("utf-8")
    sections = [_verdict(report), _warnings(report)]
    result = report.tournament
    if result is not None:
        sections += [_matrix(result), _policies(result, report), _meta_game(result)]
        sections.append(_raters(result))
    sections += [_finding(finding, report) for finding in report.findings]
    if report.stages:
        sections += [_stages(report.stages), _curves(report)]
    if result is not None:
        sections += [_samples(result), _how_judged(result)]
    return string.Template(page).substitute(
        run=escape(report.run), facts=_facts(report), body="\n".join(filter(None, sections))
    )


def _facts(report: Report) -> str:
    facts = []
    if report.tournament is not None:
        policies = len(report.tournament.policies)
        facts += [
            f"{policies} {'policy' if policies == 1 else 'policies'}",
            f"{report.tournament.prompts:,} prompts",
            f"judge: {report.tournament.judge}",
        ]
    seconds = [stage.seconds for stage in report.stages if stage.seconds is not None]
    if seconds:
        facts.append(f"{duration(sum(seconds))} of wall time")
    return " · ".join(map(escape, facts)) or "learning curves"


def _verdict(report: Report) -> str:
    lines = "".join(f"<p>{escape(sentence)}</p>" for sentence in report.verdict)
    return lines and f'<div class="verdict">{lines}</div>'


def _warnings(report: Report) -> str:
    items = "".join(f"<li>{escape(warning)}</li>" for warning in report.warnings)
    return items and (
        f'<div class="warnings" role="note"><strong>Read with care</strong><ul>{items}</ul></div>'
    )


def _matrix(result: TournamentResult) -> str:
    rates = result.win_rates
    header = "".join(f'<th scope="col">{escape(name)}</th>' for name in rates.names)
    rows = ""
    for row in rates.names:
        cells = ""
        for column in rates.names:
            if row == column:
                cells += '<td class="self">–</td>'
                continue
            cell = rates.between(row, column)
            background, foreground = plots.cell_colors(cell.value)
            decided = ' class="decided"' if rates.is_decided(row, column) else ""
            title = f"{row} is preferred to {column} with {cell.value:.3f}"
            cells += (
                f'<td{decided} style="background:{background};color:{foreground}"'
                f' title="{escape(title)}">{cell.value:.3f}'
                f"<small>{cell.low:.3f}–{cell.high:.3f}</small></td>"
            )
        rows += f'<tr><th scope="row">{escape(row)}</th>{cells}</tr>'
    ramp = "".join(
        '<span style="background:{};color:{}">{:.2f}</span>'.format(*plots.cell_colors(rate), rate)
        for rate in (0, 0.25, 0.4, 0.5, 0.6, 0.75, 1)
    )
    return f"""<section><h2>Who beats whom</h2>
<p>Read along a row: a cell says how often the <strong>row</strong> is preferred to the
<strong>column</strong>. Below it stands the 95 % interval ({escape(rates.interval)});
bold where it leaves out one half.</p>
<div class="legend"><span>row loses <span class="ramp">{ramp}</span> row wins</span></div>
<div class="wide"><table class="matrix"><thead><tr><td></td>{header}</tr></thead>
<tbody>{rows}</tbody></table></div></section>"""


def _policies(result: TournamentResult, report: Report) -> str:
    rows = "".join(_player(player, result) for player in result.players)
    picture = ""
    if "win_rate_against_kl.png" in report.figures:
        picture = _picture(
            report,
            "win_rate_against_kl.png",
            "Mean win rate of each policy over the others against its KL from SFT;"
            " the same figures as in the table above.",
            width=44,
        )
    heads = "".join(
        f'<th scope="col"{"" if index == 0 else " class=n"}>{name}</th>'
        for index, name in enumerate(
            ("Player", "Win rate over<br>other policies", "over the<br>references",
             "KL from SFT<br>(nats)", "Words", "Tokens", "Distinct", "Empty",
             "ROUGE-1", "ROUGE-2", "ROUGE-L")
        )
    )  # fmt: skip
    return f"""<section><h2>Policies</h2>
<div class="wide"><table class="plain"><thead><tr>{heads}</tr></thead>
<tbody>{rows}</tbody></table></div>
<p class="facts">Lengths are means per response. ROUGE is F1 against the closest reference, not
stemmed. KL is the mean of log π(y|x) − log μ(y|x) over the sampled responses, ± its standard
error.</p>
{picture}</section>"""


def _player(player: PlayerSummary, result: TournamentResult) -> str:
    over_reference = None
    policy = player.name != REFERENCE
    if policy and REFERENCE in result.win_rates.names:
        over_reference = result.win_rates.between(player.name, REFERENCE)
    kl = _number(player.kl, ".2f")
    if player.kl_standard_error is not None:
        kl += f"<small>± {player.kl_standard_error:.2f}</small>"
    cells = [
        (_with_interval(player.mean_win_rate), False),
        (_with_interval(over_reference), False),
        (kl, False),
        (_number(player.mean_words, ".1f"), False),
        (_number(player.mean_tokens, ".1f"), False),
        (_number(player.distinct, ".1%"), policy and player.distinct < COLLAPSED_BELOW),
        (_number(player.empty, ".1%"), policy and player.empty > EMPTY_ABOVE),
        *((_number(x, ".3f"), False) for x in (player.rouge1, player.rouge2, player.rougeL)),
    ]
    numbers = "".join(
        f'<td class="n{" low" if flagged else ""}">{text}</td>' for text, flagged in cells
    )
    kind = "" if policy else ' class="reference"'
    return f'<tr{kind}><th scope="row">{escape(player.name)}</th>{numbers}</tr>'


def _meta_game(result: TournamentResult) -> str:
    if result.meta_game is None:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(policy.name)}</th>'
        f'<td class="n">{_with_interval(policy.nash)}</td>'
        f'<td class="n">{_with_interval(policy.win_rate_over_nash)}</td>'
        f'<td class="n">{_with_interval(policy.exploitability)}</td>'
        f"<td>{escape(policy.best_response or 'none beats it')}</td></tr>"
        for policy in result.meta_game
    )
    first, *others = (f"<p>{escape(sentence)}</p>" for sentence in about_meta_game())
    return f"""<section><h2>The game between the policies</h2>
{first}
<div class="wide"><table class="plain"><thead><tr><th scope="col">Policy</th>
<th scope="col" class="n">Mass in the<br>Nash average</th>
<th scope="col" class="n">Win rate over<br>the Nash average</th>
<th scope="col" class="n">Exploitability</th><th scope="col">Best response</th></tr></thead>
<tbody>{rows}</tbody></table></div>
{"".join(others)}</section>"""


def _raters(result: TournamentResult) -> str:
    if not result.raters:
        return ""
    shares = shares_of_population(result)
    share = '<th scope="col" class="n">Share of the<br>population\'s</th>' if shares else ""
    rows = ""
    for index, rater in enumerate(result.raters):
        rows += (
            f'<tr><th scope="row">{escape(rater.name)}</th>'
            f'<td class="n">{_with_interval(rater.accuracy)}</td>'
            + (f'<td class="n">{shares[index]:.3f}</td>' if shares else "")
            + "</tr>"
        )
    return f"""<section><h2>How raters predict votes</h2>
<p>{escape(about_raters(result))}</p>
<div class="wide"><table class="plain"><thead><tr>
<th scope="col">Rater</th><th scope="col" class="n">Accuracy</th>{share}</tr></thead>
<tbody>{rows}</tbody></table></div></section>"""


def _finding(finding: Finding, report: Report) -> str:
    table = ""
    if finding.table:
        header, *rows = finding.table
        heads = "".join(
            f'<th scope="col"{" class=n" if index else ""}>{escape(cell)}</th>'
            for index, cell in enumerate(header)
        )
        body = "".join(
            f'<tr><th scope="row">{escape(row[0])}</th>'
            + "".join(f'<td class="n">{escape(cell)}</td>' for cell in row[1:])
            + "</tr>"
            for row in rows
        )
        table = (
            f'<div class="wide"><table class="plain"><thead><tr>{heads}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )
    picture = _picture(report, finding_file(finding), finding.title)
    return (
        f"<section><h2>{escape(finding.title)}</h2><p>{escape(finding.text)}</p>"
        f"{picture}{table}</section>"
    )


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _with_interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "–"
    return f"{estimate.value:.3f}<small>{estimate.low:.3f}–{estimate.high:.3f}</small>"


def _stages(stages: tuple[Stage, ...]) -> str:
    rows = ""
    for stage in stages:
        rows += (
            f'<tr><th scope="row">{escape(stage.name)}</th>'
            f'<td class="n">{_number(stage.steps, ",")}</td>'
            f'<td class="n">{"–" if stage.seconds is None else duration(stage.seconds)}</td>'
            f'<td class="n">{_number(stage.steps_per_second, ".2f")}</td>'
            f"<td>{_last(stage, 'train')}</td><td>{_last(stage, 'validation')}</td>"
            f"<td>{_figures(stage.data, '.6g')}</td></tr>"
        )
    return f"""<section><h2>What was run</h2>
<div class="wide"><table class="plain"><thead><tr>
<th scope="col">Stage</th><th scope="col" class="n">Steps</th>
<th scope="col" class="n">Wall time</th><th scope="col" class="n">Steps / s</th>
<th scope="col">Last on train</th><th scope="col">Last on validation</th>
<th scope="col">Data</th></tr></thead>
<tbody>{rows}</tbody></table></div></section>"""


def _last(stage: Stage, split: str) -> str:
    return _figures(dict(list(stage.last(split).items())[:4]), ".4g")


def _figures(values: Mapping[str, float], form: str) -> str:
    return ", ".join(f"{escape(name)}&nbsp;{value:{form}}" for name, value in values.items()) or "–"


def _curves(report: Report) -> str:
    pictures = "".join(
        _picture(report, curves_file(stage), f"Learning curves of {stage.name}")
        for stage in report.stages
        if curves_file(stage) in report.figures
    )
    return pictures and f"<section><h2>Learning curves</h2>{pictures}</section>"


def _picture(report: Report, file: str, says: str, width: int | None = None) -> str:
    data = base64.b64encode(report.figures[file]).decode("ascii")
    limit = f' style="width:{width}rem"' if width else ""
    return f'<figure><img{limit} alt="{escape(says)}" src="data:image/png;base64,{data}"></figure>'


def _samples(result: TournamentResult) -> str:
    samples = "".join(
        _sample(number, sample) for number, sample in enumerate(result.samples, start=1)
    )
    if not samples:
        return ""
    scored = result.samples[0].scores is not None
    says = (
        "The number beside a policy's name is the judge's mean preference for this response over"
        " the other policies' responses to the same prompt."
    )
    return f"""<section><h2>Samples</h2>
<p>One response a policy, drawn at the tournament's temperature; prompts spread evenly over the
tournament, not chosen. {says if scored else ""}</p>
{samples}</section>"""


def _sample(number: int, sample: Sample) -> str:
    references = ""
    if sample.references:
        items = "".join(f'<li class="text">{escape(text)}</li>' for text in sample.references)
        word = "References" if len(sample.references) > 1 else "Reference"
        references = f'<div class="references"><p class="label">{word}</p><ul>{items}</ul></div>'
    columns = _columns(len(sample.responses))
    responses = ""
    for name, text in sample.responses.items():
        score = ""
        if sample.scores is not None:
            background, foreground = plots.cell_colors(sample.scores[name])
            score = (
                f'<span class="score" style="background:{background};color:{foreground}">'
                f"{sample.scores[name]:.2f}</span>"
            )
        shown = f'<div class="text">{escape(text)}</div>'
        if not text.strip():
            shown = '<div class="nothing">(empty)</div>'
        responses += f'<div class="response"><h3>{escape(name)}{score}</h3>{shown}</div>'
    return (
        f'<article class="sample"><div class="prompt"><p class="label">Prompt {number}</p>'
        f'<div class="text" tabindex="0">{escape(sample.prompt)}</div></div>'
        f'{references}<div class="responses" style="--columns:{columns}">{responses}</div>'
        "</article>"
    )


def _columns(responses: int) -> int:
    """At most four side by side, and rows as equal as can be."""
    rows = math.ceil(responses / 4)
    return math.ceil(responses / rows)


def _how_judged(result: TournamentResult) -> str:
    found = result.intransitivity
    counted = (
        "Each comparison is one vote; votes are counted and intervals are Clopper-Pearson's, which"
        " cover the true rate in at least 95 of 100 cases."
        if result.votes
        else "Each comparison gives a probability; probabilities are averaged over prompts, and the"
        " intervals come from resampling prompts (bootstrap percentiles)."
    )
    sentences = [
        f"All players answered the same {result.prompts:,} prompts, and every pair was judged on"
        f" each of them. The judge: {result.judge}. {counted}"
    ]
    if REFERENCE in result.win_rates.names:
        sentences.append(
            f"The player “{REFERENCE}” hands in one of the human references of a prompt,"
            " drawn evenly. It does not count among the other policies in mean win rates."
        )
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
    paragraphs = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    return f"<section><h2>How it was judged</h2>{paragraphs}</section>"
