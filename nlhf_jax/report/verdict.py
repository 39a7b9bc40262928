"""What a tournament comes to, in sentences."""

from collections.abc import Sequence

from nlhf_jax.evaluation.results import REFERENCE, UNSURE_BELOW, TournamentResult


def verdict(result: TournamentResult) -> list[str]:
    """The outcome in sentences: who beats everybody, and where the matrix goes in circles.

    What is said without a doubt holds in at least 95 of 100 cases, all of it together: see
    `WinRates.is_decided`. The first sentence says what the judge is, where that matters.
    """
    rates, policies = result.win_rates, result.policies
    sentences = []
    for name in policies:
        others = [(rates.between(name, other), other) for other in policies if other != name]
        if others and min(cell.value for cell, _ in others) > 0.5:
            cell, closest = min(others, key=lambda pair: pair[0].value)
            unsure = "" if rates.is_decided(name, closest) else ", too close to call"
            sentences.append(
                f"{name} is preferred to every other policy; the closest is {closest}, beaten with"
                f" {cell.value:.3f} ({cell.low:.3f} to {cell.high:.3f}{unsure})."
            )
    if not sentences and len(policies) > 1:
        sentences.append("No policy is preferred to every other one.")
    cycles = result.intransitivity.policy_cycles
    decided = [
        cycle for cycle in cycles if all(map(rates.is_decided, cycle, cycle[1:] + cycle[:1]))
    ]
    if decided:
        shown = "; ".join(" beats ".join((*cycle, cycle[0])) for cycle in decided[:3])
        more = f"; and {len(decided) - 3} more cycles" if len(decided) > 3 else ""
        sentences.append(f"The matrix goes in circles: {shown}{more}.")
    elif cycles:
        sentences.append(
            f"Cycles among policies: {len(cycles)}, none with all three win rates beyond doubt."
        )
    if REFERENCE in rates.names:
        above = [
            name
            for name in policies
            if rates.is_decided(name, REFERENCE) and rates.between(name, REFERENCE).value > 0.5
        ]
        sentences.append(
            f"Preferred to the human references beyond doubt: {', '.join(above) or 'none'}."
        )
    about = _about_judge(result)
    if result.judge_accuracy is not None and not result.judge_accuracy.can_tell:
        return [*about, *sentences]  # Before anything that it says.
    return [" ".join([*sentences[:1], *about]), *sentences[1:]]


def _about_judge(result: TournamentResult) -> list[str]:
    """What the judge cannot say."""
    found, measured = [], result.judge_accuracy
    tells = measured is None or measured.can_tell
    if measured is not None and not tells:
        accuracy = measured.accuracy
        found.append(
            "The judge cannot tell which of two responses people prefer: it agrees with"
            f" {accuracy.value:.1%} of the votes on {measured.comparisons:,} comparisons"
            f" ({accuracy.low:.1%} to {accuracy.high:.1%}), a coin with half of them. So nothing"
            " here says which policy people would prefer."
        )
    error = result.win_rates.judge_error
    if measured is not None and tells and measured.certainty is not None and error >= 0.005:
        found.append(
            f"On votes the judge is sure of its preference with {measured.certainty:.3f} on average"
            f" and right in {measured.accuracy.value:.3f}: what is within {error:.3f} of one half"
            " is too close to call."
        )
    trained = result.trained_against_judge
    if trained:
        one = len(trained) == 1
        found.append(
            f"The judge is the rater that {_listed(trained)} {'was' if one else 'were'} trained"
            f" against: this says how well {'it pleases' if one else 'they please'} that rater, not"
            " how good the responses are."
        )
    sure = result.judge_certainty
    if tells and sure is not None and sure < UNSURE_BELOW:
        found.append(
            "The judge hardly tells responses apart: of two different ones it prefers one with a"
            f" probability of {sure:.3f} on average."
        )
    return found


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
