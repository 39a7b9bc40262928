"""The sections about a tournament."""

import dataclasses
from collections.abc import Mapping, Sequence

from nlhf_jax.evaluation.judges import POPULATION
from nlhf_jax.evaluation.results import (
    COLLAPSED_BELOW,
    EMPTY_ABOVE,
    REFERENCE,
    PlayerSummary,
    TournamentResult,
)
from nlhf_jax.evaluation.seeds import STUDENT
from nlhf_jax.report import more_sections, tournament_charts
from nlhf_jax.report.contents import Tournament
from nlhf_jax.report.opinions_section import other_judges
from nlhf_jax.report.parts import (
    Cell,
    Charts,
    Matrix,
    Part,
    Picture,
    Samples,
    Section,
    Table,
    Text,
    estimate_cell,
    number,
)

_TRADE_OFFS = (
    ("win_rate_against_kl", "Mean win rate of each policy over the others against its KL from SFT"),
    ("win_rate_against_length", "Mean win rate of each policy over the others against its length"),
)
_RELIABILITY = (
    "reliability",
    "Share of votes that agree with a rater, among comparisons it is equally sure of",
)


def outcome(one: Tournament, figures: Mapping[str, bytes]) -> list[Section]:
    """Who won, and by what measures."""
    result = one.result

    def pictures(*named: tuple[str, str]) -> list[Picture]:
        return [
            Picture(one.figure(name), says, width=44)
            for name, says in named
            if one.figure(name) in figures
        ]

    found = (
        _who_beats_whom(one),
        _policies(result, pictures(*_TRADE_OFFS)),
        _meta_game(result),
        other_judges(result),
        more_sections.over_seeds_of(result),
        more_sections.at_equal_length(result),
        more_sections.other_measures(result),
        _raters(result, pictures(_RELIABILITY)),
    )
    return _named(one, found)


def behind_it(one: Tournament) -> list[Section]:
    """What the outcome rests on."""
    return _named(one, (_samples(one), _how_judged(one.result)))


def _named(one: Tournament, found: Sequence[Section | None]) -> list[Section]:
    return [
        dataclasses.replace(section, title=one.named(section.title))
        for section in found
        if section is not None
    ]


def _who_beats_whom(one: Tournament) -> Section:
    rates = one.result.win_rates
    pairs = len(rates.names) * (len(rates.names) - 1) // 2
    return Section(
        "Who beats whom",
        [
            Text(
                "Read along a row: a cell says how often the row is preferred to the column, with"
                f" its 95 % interval ({rates.interval}); bold where it is beyond doubt which of the"
                f" two is preferred, of all {pairs} pairs together (Holm){_off(rates.judge_error)}."
            ),
            Matrix(rates, None if one.browsed is None else _browser(one)),
        ],
    )


def _off(error: float) -> str:
    if error >= 0.5:
        return ", which under this judge is nowhere"
    if not error:
        return ""
    return f" and the rate is further from one half than the judge is off by, {error:.3f}"


def _policies(result: TournamentResult, pictures: Sequence[Picture]) -> Section:
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
    charts = tournament_charts.trade_offs(result)
    if charts:
        parts.append(Charts(charts, pictures))
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
        estimate_cell(player.mean_win_rate),
        estimate_cell(over_reference),
        Cell(number(player.kl, ".2f"), "" if error is None else f"± {error:.2f}"),
        Cell(number(player.mean_words, ".1f")),
        Cell(number(player.mean_tokens, ".1f")),
        Cell(number(player.distinct, ".1%"), flagged=policy and player.distinct < COLLAPSED_BELOW),
        Cell(number(player.empty, ".1%"), flagged=policy and player.empty > EMPTY_ABOVE),
        *(Cell(number(x, ".3f")) for x in (player.rouge1, player.rouge2, player.rougeL)),
    ]


def _meta_game(result: TournamentResult) -> Section | None:
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
            estimate_cell(policy.nash),
            estimate_cell(policy.win_rate_over_nash),
            estimate_cell(policy.exploitability),
            Cell(policy.best_response or "none beats it"),
        ]
        for policy in result.meta_game
    ]
    first, *others = map(Text, _about_meta_game())
    table = Table(header, rows, words=(4,))
    return Section("The game between the policies", [first, table, *others])


_ABOUT_CERTAINTY = (
    ("Log-loss (nats)", "log_loss", ".3f"),
    ("Sure with", "certainty", ".3f"),
    ("Temperature", "temperature", ".2f"),
)


def _raters(result: TournamentResult, pictures: Sequence[Picture]) -> Section | None:
    if not result.raters:
        return None
    header = ["Rater", "Accuracy"]
    rows = [
        [
            Cell(rater.name + (" (judge)" if rater.name == result.judging != "judge" else "")),
            estimate_cell(rater.accuracy),
        ]
        for rater in result.raters
    ]
    # What files of earlier releases do not have, and what was not asked for, has no column.
    for name, field, form in _ABOUT_CERTAINTY:
        values = [getattr(rater, field) for rater in result.raters]
        if any(value is not None for value in values):
            header.append(name)
            rows = [
                [*row, Cell(number(value, form))] for row, value in zip(rows, values, strict=True)
            ]
    shares = _shares_of_population(result)
    if shares:
        header.append("Share of the population's")
        rows = [[*row, Cell(f"{share:.3f}")] for row, share in zip(rows, shares, strict=True)]
    parts: list[Part] = [Text(_about_raters(result)), Table(header, rows)]
    charts = tournament_charts.reliability(result)
    if charts:
        about = Text(
            "A coin's log-loss is 0.693. A rater is sure with the mean probability of what it"
            " prefers; where that is its accuracy, it is calibrated. Temperature is what its"
            " log-odds were divided by for that, fitted to other votes.",
            quiet=True,
        )
        parts += [about, Charts(charts, pictures)]
    return Section("How raters predict votes", parts)


def _samples(one: Tournament) -> Section | None:
    result = one.result
    if not result.samples and one.browsed is None:
        return None
    says = (
        "One response a policy, drawn at the tournament's temperature; prompts spread evenly over"
        " the tournament, not chosen."
    )
    if result.samples and result.samples[0].scores is not None:
        says += (
            " The number beside a policy's name is the judge's mean preference for this response"
            " over the other policies' responses to the same prompt."
        )
    some = Samples(result.samples, says, one.browsed, _browser(one), _pair(one))
    return Section("Samples", [some])


def _browser(one: Tournament) -> str:
    return "" if one.alone else one.name


def _pair(one: Tournament) -> tuple[str, str]:
    """The policy that does best, and of the others the one it has most trouble with."""
    if one.browsed is None:
        return "", ""
    players, rates = one.browsed.players, one.result.win_rates
    known = [name for name in one.result.policies if name in players]
    if len(known) < 2:
        return players[0], players[1]
    by_name = {player.name: player.mean_win_rate for player in one.result.players}
    best = max(known, key=lambda name: rate.value if (rate := by_name[name]) else 0.0)
    others = [name for name in known if name != best]
    return best, min(others, key=lambda name: rates.between(best, name).value)


def _how_judged(result: TournamentResult) -> Section:
    counted = (
        "Each comparison is one vote; votes are counted and intervals are Clopper-Pearson's, which"
        " cover the true rate in at least 95 of 100 cases."
        if result.votes
        else "Each comparison gives a probability; probabilities are averaged over prompts, and the"
        " intervals come from resampling prompts (bootstrap percentiles, expanded as Student's)."
    )
    if result.win_rates.interval == STUDENT:
        counted = "Each comparison is of two runs; intervals are Student's, over runs."
    prompts = f"{result.prompts:,} prompts"
    if result.prompts_in_split is not None and result.prompts < result.prompts_in_split:
        prompts += f", drawn from {result.prompts_in_split:,}"
    if result.seed is not None:
        prompts += f" (seed {result.seed})"
    sentences = [
        f"All players answered the same {prompts}, and every pair was judged on each of them. The"
        f" judge: {result.judge}. {counted}",
        "An interval is of one figure by itself. What is bold or beyond doubt holds together, all"
        " of it in 95 of 100 cases: the p-values of the pairs"
        f" ({'binomial' if result.votes else 'Student’s'}) are corrected by Holm for their number.",
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
    return Section("How it was judged", [Text(text) for text in (*sentences, *result.notes)])


def _about_meta_game() -> tuple[str, ...]:
    """What the table of the game between the policies says and how to read it."""
    return (
        "Two sides each send a policy, without knowing whom the other sends: that is a game, and"
        " the win rates above are its payoffs. Its Nash average is the mixture of policies that"
        " none of them beats, and of several such mixtures the most even one; a policy's mass is"
        " its share. Copies of a policy divide its mass and leave the other masses as they are.",
        "A mass can jump from 0 to 1 when a near tie turns. Its interval is all that comes of those"
        " matrices that these prompts allow (95 % of those with prompts resampled, the central"
        " ones). Where it is wide, the prompts do not settle who is in the mixture: read the"
        " interval, not the mass.",
        "Exploitability is by how much the win rate of the best response, the policy that does best"
        " against this one, is above one half; at 0 none beats it. Its interval is made of those of"
        " the matrix, the lower end further out because the best of several was chosen. All this"
        " holds among these policies; others may beat them.",
    )


def _about_raters(result: TournamentResult) -> str:
    """What the table of raters says; there is at least one rater."""
    says = (
        f"The share of the votes on {result.raters[0].comparisons:,} comparisons that agree with"
        " what each rater prefers, with 95 % intervals (bootstrap"
    )
    posts = result.raters[0].posts
    says += ")." if posts is None else f" over {posts:,} posts, each with all its votes)."
    if result.raters[0].name == POPULATION:
        says += (
            " Voters differ, so not even the population's own preference agrees with every vote: it"
            " is the ceiling."
        )
    return says


def _shares_of_population(result: TournamentResult) -> list[float] | None:
    """Each rater's accuracy over that of the population; None where that is not known."""
    ceiling = result.raters[0]
    if ceiling.name != POPULATION or ceiling.accuracy.value == 0:
        return None
    return [rater.accuracy.value / ceiling.accuracy.value for rater in result.raters]
