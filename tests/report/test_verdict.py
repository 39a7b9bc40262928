"""What the report's first lines claim, and what they warn of."""

import dataclasses
import itertools

import numpy as np

from nlhf_jax.data.tldr_mini import text as tldr_mini_text
from nlhf_jax.evaluation import intervals, results, tournament
from nlhf_jax.evaluation.intervals import Estimate
from nlhf_jax.evaluation.judges import PopulationJudge
from nlhf_jax.evaluation.tournament import Player
from nlhf_jax.evaluation.votes import RaterAccuracy, rater_accuracy
from nlhf_jax.report.verdict import verdict
from tests.evaluation.games import referee


def undecided(prompts, certainty=0.1):
    """Six policies and references that a judge prefers now this way and now that."""
    rng = np.random.default_rng(3)
    judge = PopulationJudge(lambda asked, *_: 0.5 + certainty * rng.choice([-1, 1], len(asked)))
    players = {name: Player([f"{name}{n}" for n in range(prompts)]) for name in "abcdef"}
    references = [[f"r{n}"] for n in range(prompts)]
    return tournament.play([str(n) for n in range(prompts)], players, judge, references)


def test_what_an_interval_alone_would_say_is_not_beyond_doubt_among_many():
    """One of 21 pairs is out by 2.4 standard errors, as chance has it in 1 of 3 tournaments."""
    result = undecided(200)
    scores = 0.5 + 0.1 * np.repeat([1, -1], [117, 83])
    lone, p_value = (
        intervals.bootstrap_mean(scores, seed=0),
        intervals.p_values(scores, votes=False),
    )
    assert lone.low > 0.5 and p_value < 0.05

    def says(p_value):
        rate, low, high, p = (np.full((7, 7), 0.5) for _ in range(4))
        rate[0, 6], low[0, 6], high[0, 6] = lone.value, lone.low, lone.high
        rate[6, 0], low[6, 0], high[6, 0] = 1 - lone.value, 1 - lone.high, 1 - lone.low
        p[0, 6] = p[6, 0] = p_value
        rates = dataclasses.replace(result.win_rates, rate=rate, low=low, high=high, p=p)
        return verdict(dataclasses.replace(result, win_rates=rates))

    assert "Preferred to the human references beyond doubt: none." in says(p_value)
    assert "Preferred to the human references beyond doubt: a." in says(0.05 / 21)


def test_a_judge_that_cannot_tell_is_said_to():
    first = verdict(undecided(50, certainty=0.004))[0]
    assert "The judge hardly tells responses apart" in first
    assert "with a probability of 0.504 on average." in first
    assert "hardly tells" not in " ".join(verdict(undecided(50, certainty=0.1)))


def test_a_judge_that_players_were_trained_against_is_said_to_be_in_the_verdict_s_own_line():
    result = dataclasses.replace(undecided(50), trained_against_judge=("b", "c", "d"))
    assert (
        "The judge is the rater that b, c and d were trained against: this says how well they"
        " please that rater, not how good the responses are."
    ) in verdict(result)[0]
    alone = dataclasses.replace(result, trained_against_judge=("b",))
    assert (
        "the rater that b was trained against: this says how well it pleases" in verdict(alone)[0]
    )


def decisive(judge, raters=(), judging=None):
    """Two policies, one of which a judge prefers with 0.9 on every prompt."""
    players = {
        name: Player([f"{text} {n}" for n in range(300)])
        for name, text in (("A", "alpha"), ("B", "beta"))
    }
    references = [[f"zeta {n}"] for n in range(300)]
    result = tournament.play([str(n) for n in range(300)], players, judge, references)
    return result.with_raters(tuple(raters), judging)


def alphabetic(prompts, first, second):
    """Sure of itself, and of nothing that people care for."""
    return np.where([a < b for a, b in zip(first, second, strict=True)], 0.9, 0.1)


def test_a_tournament_judged_by_a_coin_says_so_first_and_decides_nothing():
    votes = list(itertools.islice(tldr_mini_text.votes("test"), 400))
    coin = PopulationJudge(alphabetic)
    measured = rater_accuracy(
        "judge",
        coin,
        [vote.post.text for vote in votes],
        [vote.chosen for vote in votes],
        [vote.rejected for vote in votes],
        np.array([vote.weight for vote in votes]),
        seed=0,
    )
    assert 0.4 < measured.accuracy.value < 0.55
    result = decisive(coin, [measured], "judge")
    said = verdict(result)
    share = f"{measured.accuracy.value:.1%}"
    assert said[0].startswith("The judge cannot tell which of two responses people prefer: it")
    assert f"agrees with {share} of the votes on 400 comparisons" in said[0]
    assert "nothing here says which policy people would prefer" in said[0]
    assert "too close to call" in said[1]
    assert "Preferred to the human references beyond doubt: none." in said
    names = result.win_rates.names
    assert not any(result.win_rates.is_decided(a, b) for a in names for b in names)
    # Without its accuracy nobody would know.
    unmeasured = verdict(decisive(coin))
    assert "Preferred to the human references beyond doubt: A, B." in unmeasured
    again = results.TournamentResult.from_json(result.to_json())
    assert verdict(again) == said and again.judge_accuracy == measured


def test_what_a_judge_is_off_by_is_too_close_to_call():
    """Sure with 0.9, right in 0.62: 0.28 off; and a policy that it prefers with 0.75."""
    judge = PopulationJudge(lambda prompts, *_: np.full(len(prompts), 0.75))
    measured = RaterAccuracy("judge", Estimate(0.62, 0.58, 0.66), 400, 50, 0.9, 0.9)
    said = verdict(decisive(judge, [measured], "judge"))
    assert (
        "On votes the judge is sure of its preference with 0.900 on average and right in" in said[0]
    )
    assert "what is within 0.280 of one half is too close to call" in said[0]
    assert "Preferred to the human references beyond doubt: none." in said
    calibrated = dataclasses.replace(measured, certainty=0.63)
    assert "beyond doubt: A, B." in " ".join(verdict(decisive(judge, [calibrated], "judge")))
    # Of a rater that is not the judge nothing follows.
    assert "On votes" not in " ".join(verdict(decisive(judge, [measured])))


def test_what_cannot_be_trusted_is_warned_of():
    guessing = RaterAccuracy("reward model", Estimate(0.52, 0.49, 0.55), 400, 50)
    sure = RaterAccuracy("preference model", Estimate(0.6, 0.55, 0.65), 400, 50)
    result = dataclasses.replace(
        undecided(300), raters=(guessing, sure), training_unknown=("a", "b")
    )
    assert [line for line in results.warnings(result) if "words" not in line] == [
        "The checkpoint of a, b does not say against which rater it was trained; if that was this"
        " judge, it is no independent one.",
        "The reward model may be guessing: it agrees with 52.0% of the votes (49.0% to 55.0%).",
    ]
    players = {throw: Player([throw] * 30) for throw in ("rock", "paper")}
    few = results.warnings(tournament.play(["x"] * 30, players, referee()))
    assert any("as near to 0 or 1 as paper over rock (0.900)" in line for line in few)
