"""The section about a tournament's other judges."""

from nlhf_jax.evaluation.opinions import Opinion
from nlhf_jax.evaluation.results import REFERENCE, TournamentResult
from nlhf_jax.report.parts import Cell, Matrix, Part, Section, Table, Text, estimate_cell, number


def other_judges(result: TournamentResult) -> Section | None:
    """What they say beside the one that decides; None where there are none."""
    if not result.opinions:
        return None
    header = ["Policy", f"{result.judge} (judge)", *(one.judge for one in result.opinions)]
    means = {player.name: player.mean_win_rate for player in result.players}
    rows = [
        [
            Cell(name),
            estimate_cell(means[name]),
            *(_opinion_cell(one, name) for one in result.opinions),
        ]
        for name in result.policies
    ]
    parts: list[Part] = [
        Text(
            "Mean win rate over the other policies, by each judge, of the same responses."
            " Beside it: how much more a judge gives a policy than the deciding one does, with its"
            " 95 % interval over prompts. Coloured: the policy was trained against this judge, and"
            " the gap is above zero: it has learned what this judge alone sees (preference"
            " hacking)."
        ),
        Table(header, rows),
        Text(_agreement(result), quiet=True),
    ]
    for one in result.opinions:
        parts += [Text(f"Who beats whom, says {one.judge}:"), Matrix(one.win_rates)]
    return Section("What other judges say", parts)


def _opinion_cell(one: Opinion, name: str) -> Cell:
    gap = one.gaps.get(name)
    if gap is None:
        return Cell("–")
    return Cell(
        f"{one.mean_win_rates[name].value:.3f}",
        f"{gap.value:+.3f}, {gap.low:+.3f} to {gap.high:+.3f}",
        flagged=name in one.trained_against and gap.low > 0,
    )


def _agreement(result: TournamentResult) -> str:
    said = []
    for one in result.opinions:
        text = f"{one.judge} on {number(one.agreeing, '.1%')}"
        if one.kappa is not None:
            ends = f"{one.kappa.low:.2f} to {one.kappa.high:.2f}"
            text += f" (Cohen's kappa {one.kappa.value:.2f}, {ends})"
        if one.trained_against:
            text += f", which trained {', '.join(one.trained_against)}"
        said.append(text)
    players = "players" if REFERENCE in result.win_rates.names else "policies"
    return (
        f"Of the pairs of different responses of two {players} to one prompt, a judge agrees with"
        f" the deciding one: {'; '.join(said)}. Kappa is 1 for judges who always agree and 0 for"
        " those who do so as often as by chance."
    )
