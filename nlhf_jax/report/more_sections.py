"""Sections about a tournament that look at the same answers in other ways."""

from nlhf_jax.evaluation.results import PlayerSummary, TournamentResult
from nlhf_jax.evaluation.seeds import over_seeds, settings_of
from nlhf_jax.evaluation.statistics import Standing, WinRates
from nlhf_jax.report.parts import NOTHING, Cell, Matrix, Section, Table, Text, estimate_cell, number


def over_seeds_of(result: TournamentResult) -> Section | None:
    """The settings of which several runs play, named `SETTING#NUMBER`; None if there are none."""
    groups = settings_of(result.win_rates.names)
    if all(len(runs) == 1 for runs in groups.values()):
        return None
    rates = over_seeds(result.win_rates, groups)
    several = ", ".join(f"{name} ({len(runs)})" for name, runs in groups.items() if len(runs) > 1)
    return Section(
        "Over seeds",
        [
            Text(
                f"Settings of which several runs played: {several}. A cell is the mean over their"
                " runs; its interval is Student’s and says what other runs on these prompts would"
                " give, as far as so few can tell. A setting with one run is that run."
                f" {_bold(rates)}"
            ),
            Matrix(rates),
        ],
    )


def at_equal_length(result: TournamentResult) -> Section | None:
    """The length-controlled matrix; None of a file of an earlier release."""
    rates = result.length_controlled
    if rates is None:
        return None
    return Section(
        "Who beats whom at equal length",
        [
            Text(
                "What the win rates would be if both responses had equally many characters, by the"
                " logistic regression of length-controlled AlpacaEval on the difference of their"
                f" lengths and a difficulty of each prompt. {_bold(rates)} Where one of the two is"
                " always longer by about the same, length and quality cannot be told apart, and the"
                " interval says so."
            ),
            Matrix(rates),
        ],
    )


def other_measures(result: TournamentResult) -> Section | None:
    """One row a player: scores that rank, and what its texts are like."""
    standings = {one.name: one for one in result.meta_game or ()}
    if all(player.text is None for player in result.players):
        return None
    header = [
        "Player",
        "Win rate over other policies",
        "at equal length",
        *(("Bradley-Terry", "Alpha-rank", "Nash average") if standings else ()),
        "Distinct-1",
        "Distinct-2",
        "Repetition",
        "Novelty",
    ]
    rows = [
        [
            Cell(player.name),
            estimate_cell(player.mean_win_rate),
            estimate_cell(player.length_controlled),
            *(_of_the_game(standings.get(player.name)) if standings else ()),
            *_of_texts(player),
        ]
        for player in result.players
    ]
    about = _ABOUT_MEASURES if standings else _ABOUT_MEASURES[-1:]
    return Section(
        "Other measures", [Table(header, rows), *(Text(text, quiet=True) for text in about)]
    )


def _of_the_game(standing: Standing | None) -> list[Cell]:
    rating = None if standing is None else standing.bradley_terry
    return [
        Cell(f"{rating.value:+.2f}", f"{rating.low:+.2f} to {rating.high:+.2f}")
        if rating
        else Cell(NOTHING),
        estimate_cell(None if standing is None else standing.alpha_rank),
        estimate_cell(None if standing is None else standing.nash),
    ]


def _of_texts(player: PlayerSummary) -> list[Cell]:
    text = player.text
    if text is None:
        return [Cell(NOTHING)] * 4
    return [
        Cell(number(text.distinct_1, ".3f")),
        Cell(number(text.distinct_2, ".3f")),
        Cell(number(text.repetition, ".1%")),
        Cell(number(text.novelty, ".1%")),
    ]


_ABOUT_MEASURES = (
    "These figures describe; intervals are of one figure by itself, and no claim is"
    " corrected for their number. Bradley-Terry scores are log-odds with mean 0 among the"
    " policies: 1 more is a win rate of 73 %, if the policies can be ranked at all."
    " Alpha-rank is the share of time for which evolution plays a policy at infinite"
    " ranking intensity; all of it lies on the least set of policies that beat all others."
    " Both change when a copy of a policy enters; the masses of the others in the Nash"
    " average do not.",
    "Distinct-n is the share of different words, or pairs of neighbours, in all responses"
    " together; repetition that of the pairs in a response that stood in it before; novelty"
    " that of its words that are not in the prompt.",
)


def _bold(rates: WinRates) -> str:
    pairs = len(rates.names) * (len(rates.names) - 1) // 2
    return f"Bold is what holds for all {pairs} pairs together (Holm; {rates.interval})."
