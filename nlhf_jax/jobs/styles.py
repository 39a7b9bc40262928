"""The `styles` job of a chain: in which styles the policies of a tournament write, and what beats
them. Of `tldr_mini`, version 2, whose raters disagree about styles.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from nlhf_jax import processes
from nlhf_jax.data.tldr_mini.v2 import games, population
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import responses
from nlhf_jax.evaluation.results import TournamentResult
from nlhf_jax.files import absolute
from nlhf_jax.games.equilibrium import nash_equilibrium
from nlhf_jax.jobs.match import RESULT
from nlhf_jax.report import findings, plots, style_plots
from nlhf_jax.report.findings import Finding


def styles(workdir: str, tournament: str, reward_policy: str, nash_policy: str) -> None:
    """The finding: writes `workdir/findings.json` and its figure.

    Args:
      workdir: the stage's directory.
      tournament: directory of a tournament on version 2 of `tldr_mini`.
      reward_policy, nash_policy: players that the first sentences are about.

    Raises:
      UserError: the directory does not hold the tournament, or a player did not play.
    """
    if not processes.is_first():
        return
    result = TournamentResult.load(epath.Path(tournament) / RESULT)
    for name in (reward_policy, nash_policy):
        if name not in result.policies:
            raise UserError(f"{tournament} knows no player {name!r}")
    written = {
        name: responses.read_player(epath.Path(tournament), name) or () for name in result.policies
    }
    shares = {
        name: shares_of([(prompt, one.text) for prompt, one in of]) for name, of in written.items()
    }
    directory = epath.Path(workdir)
    run = absolute(directory).parent.name
    findings.save(directory, [_finding(result, shares, reward_policy, nash_policy, run)])


def shares_of(written: Sequence[tuple[str, str]]) -> np.ndarray:
    """Shares of `population.STYLES` among pairs of prompt and response: float64 `[5]`.

    What is in none of the styles is in no share.
    """
    found = [population.style_of(prompt, text) for prompt, text in written]
    return np.array([found.count(style) for style in population.STYLES]) / max(len(found), 1)


def beaten_by(shares: np.ndarray) -> tuple[str, float]:
    """The style that beats a mixture of styles most often, all free of faults, and how often."""
    known = shares / shares.sum() if shares.sum() else np.full(len(shares), 1 / len(shares))
    rates = games.style_preferences() @ known
    return population.STYLES[int(np.argmax(rates))], float(np.max(rates))


def _finding(
    result: TournamentResult,
    shares: Mapping[str, np.ndarray],
    reward_policy: str,
    nash_policy: str,
    run: str,
) -> Finding:
    nash = nash_equilibrium(games.style_game())[0]
    figure = style_plots.triangle(
        {name: of.tolist() for name, of in shares.items()},
        population.STYLES,
        games.style_preferences(),
        nash,
        run,
    )
    rows = [["Policy", *population.STYLES, "Beaten most by", "with"]]
    for name, of in shares.items():
        style, rate = beaten_by(of)
        rows.append([name, *(f"{share:.1%}" for share in of), style, f"{rate:.3f}"])
    numbers: dict[str, Any] = {
        name: {"shares": dict(zip(population.STYLES, of.tolist(), strict=True))}
        | dict(zip(("beaten_by", "with"), beaten_by(of), strict=True))
        for name, of in shares.items()
    }
    return Finding(
        "styles",
        "Which styles the policies write in, and what beats them",
        _TEXT.format(
            reward=_writes(reward_policy, shares[reward_policy]),
            nash=_writes(nash_policy, shares[nash_policy]),
            exact=_mixture(nash),
        ),
        plots.png(figure),
        numbers,
        rows,
        _headline(result, reward_policy, nash_policy),
    )


_TEXT = (
    "Thorough beats brief, brief beats warm, warm beats thorough, and each of these bold styles"
    " beats plain, all with about two thirds of the raters. Plain wins most often against what"
    " people write, so there the reward has its optimum. {reward} {nash} The exact Nash mixture is"
    " {exact}. What beats a policy's styles most is exact too, if nobody makes a mistake."
)


def _writes(name: str, shares: np.ndarray) -> str:
    style, rate = beaten_by(shares)
    return f"{name} writes {_mixture(shares)}, and {style} beats that with {rate:.3f}."


def _headline(result: TournamentResult, reward_policy: str, nash_policy: str) -> str:
    rates = result.win_rates
    beaten = any(
        rates.is_decided(name, nash_policy) and rates.between(name, nash_policy).value > 0.5
        for name in result.policies
        if name != nash_policy
    )
    cell = rates.between(nash_policy, reward_policy)
    says = "is beaten by" if cell.low > 0.5 else "is not shown to be beaten by"
    which = "others beat too" if beaten else "no other policy beats beyond doubt"
    return (
        f"{reward_policy} {says} {nash_policy}, which {which}: {nash_policy} is preferred to it"
        f" with {cell}."
    )


def _mixture(shares: np.ndarray) -> str:
    """ "40 % warm, 30 % brief and 30 % thorough": what is above five in a hundred."""
    order = sorted(zip(shares, population.STYLES, strict=True), reverse=True)
    said = [f"{share:.0%} {style}" for share, style in order if share > 0.05]
    return " and ".join(filter(None, [", ".join(said[:-1]), *said[-1:]])) or "in no style"
