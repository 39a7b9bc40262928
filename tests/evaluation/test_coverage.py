"""How often the report's intervals hold the truth, and how often it claims what is false.

Simulated where the truth is known. An interval of 95 % may miss it in 5 of 100 cases, give or take
what so many cases can tell: `low` is four standard deviations below.
"""

import itertools

import numpy as np
import pytest

from nlhf_jax.evaluation import intervals, statistics, tournament
from nlhf_jax.evaluation.judges import PopulationJudge
from nlhf_jax.evaluation.tournament import Player
from nlhf_jax.evaluation.votes import rater_accuracy
from nlhf_jax.games import meta_game
from nlhf_jax.report.verdict import verdict


def least(rate: float, cases: int) -> float:
    return rate - 4 * np.sqrt(rate * (1 - rate) / cases)


def covered(low, high, truth) -> np.ndarray:
    return (np.asarray(low) <= truth + 1e-6) & (truth - 1e-6 <= np.asarray(high))


def of_logits(logits: np.ndarray) -> np.ndarray:
    """Preferences `[..., K, K]` of responses whose quality is `[..., K]`."""
    return 1 / (1 + np.exp(logits[..., None, :] - logits[..., :, None]))


@pytest.mark.parametrize("n", [10, 20, 50, 200, 1000])
@pytest.mark.parametrize(("a", "b"), [(1, 1), (5, 3), (0.3, 0.3)])  # even, skewed, nearly votes
def test_win_rates_and_mean_win_rates_of_probabilities(n, a, b):
    """Both are `bootstrap`'s; its columns are independent repetitions here."""
    cases = 4000
    scores = np.random.default_rng(n).beta(a, b, (n, cases))
    found = covered(*intervals.bootstrap(scores, seed=n), a / (a + b))
    assert least(0.935, cases) < found.mean() < 0.975


@pytest.mark.parametrize("n", [7, 20, 300])
@pytest.mark.parametrize("rate", [0.02, 0.5, 0.9])
def test_win_rates_of_votes(n, rate):
    wins = np.random.default_rng(n).binomial(n, rate, 500)
    assert covered(*intervals.clopper_pearson(wins, n), rate).mean() > least(0.95, 500)


@pytest.mark.parametrize("posts", [25, 150])
@pytest.mark.parametrize("varied", [False, True])
def test_accuracies_of_raters_where_votes_on_a_post_are_alike(posts, varied, monkeypatch):
    """Each post has eight votes, or one to eight; voters of one post agree more or less."""
    monkeypatch.setattr(intervals, "RESAMPLES", 400)
    cases, found = 300, []
    prefers_the_first = PopulationJudge(lambda prompts, *_: np.ones(len(prompts)))
    for seed in range(cases):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(1, 9, posts) if varied else np.full(posts, 8)
        post_of = np.repeat(np.arange(posts), sizes)
        agrees = rng.random(len(post_of)) < rng.beta(1.4, 0.6, posts)[post_of]
        texts = [str(post) for post in post_of], ["y"] * len(post_of), ["z"] * len(post_of)
        accuracy = rater_accuracy("r", prefers_the_first, *texts, agrees * 1.0, seed).accuracy
        found.append(covered(accuracy.low, accuracy.high, 0.7))
    assert np.mean(found) > least(0.94, cases)


CYCLE = np.array([[0.0, 1.4, -0.6], [-1.4, 0.0, 0.6], [0.6, -0.6, 0.0]])
GAMES = {
    "six equal policies": np.zeros((6, 6)),
    "two equal policies": np.zeros((2, 2)),
    "a cycle": CYCLE,
    "a best one": np.array([0.5, 0.0, 0.0])[:, None] - np.array([0.5, 0.0, 0.0]),
}
FEW = (("two equal policies", False), ("a cycle", True), ("a best one", False))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("game", "votes"),
    [
        pytest.param(*case, marks=() if case in FEW else pytest.mark.long)
        for case in itertools.product(GAMES, (False, True))
    ],
)
def test_the_game_between_policies(game, votes, monkeypatch):
    """Masses, win rates over the Nash average, and exploitabilities."""
    monkeypatch.setattr(intervals, "RESAMPLES", 1000)
    cases, n, logits = 80, 100, GAMES[game]
    rng = np.random.default_rng(0)
    policies = len(logits)

    def draw(count):
        quality = rng.normal(size=(count, policies))
        return 1 / (1 + np.exp(quality[:, None, :] - quality[:, :, None] - logits))

    rate = draw(400_000).mean(axis=0) if logits.any() else np.full_like(logits, 0.5)
    rate = (rate + 1 - rate.T) / 2
    mass = meta_game.nash_average(rate)
    truths = mass, meta_game.win_rate_over(rate, mass), meta_game.exploitability(rate)
    found = []
    for seed in range(cases):
        scores = draw(n)
        if votes:
            upper = np.triu(rng.random(scores.shape) < scores, k=1)
            scores = upper + np.tril(1 - np.swapaxes(upper, 1, 2), k=-1) + np.eye(policies) / 2
        rates = statistics.win_rates("abcdef"[:policies], scores, votes, seed)
        for index, policy in enumerate(statistics.standings(rates, scores, seed)):
            measured = policy.nash, policy.win_rate_over_nash, policy.exploitability
            found.append(
                [
                    covered(one.low, one.high, truth[index])
                    for one, truth in zip(measured, truths, strict=True)
                ]
            )
    assert np.all(np.mean(found, axis=0) > least(0.94, cases))


@pytest.mark.parametrize("n", [20, 200])
def test_kl_is_within_a_standard_error_in_two_of_three_cases(n):
    """As a normal error is, in 68.3 of 100."""
    cases, found = 1000, []
    rng = np.random.default_rng(n)
    for _ in range(cases):
        player = Player([""] * n, rng.gamma(4.0, 2.0, n))
        summary = tournament._summary("a", player, None, None, None)
        found.append(abs(summary.kl - 8.0) <= summary.kl_standard_error)
    assert abs(np.mean(found) - 0.683) < 0.02 + 4 * np.sqrt(0.683 * 0.317 / cases)


@pytest.mark.parametrize("votes", [False, True])
@pytest.mark.parametrize("n", [20, 200])
def test_six_equal_policies_are_told_apart_in_at_most_five_of_a_hundred_tournaments(
    n, votes, monkeypatch
):
    monkeypatch.setattr(intervals, "RESAMPLES", 100)
    cases, false = 500, 0
    for seed in range(cases):
        rng = np.random.default_rng(seed)
        scores = of_logits(rng.normal(size=(n, 6)))
        if votes:
            scores = (rng.random(scores.shape) < scores) * 1.0
        rates = statistics.win_rates("abcdef", scores, votes, seed)
        false += any(rates.is_decided(a, b) for a in "abcdef" for b in "abcdef")
    assert false / cases < 0.05 + 4 * np.sqrt(0.05 * 0.95 / cases)


@pytest.mark.slow
def test_a_verdict_on_equal_policies_and_references_is_false_in_at_most_five_of_a_hundred_cases(
    monkeypatch,
):
    """What it says of cycles, of the best policy and of the references, all together."""
    monkeypatch.setattr(intervals, "RESAMPLES", 50)
    cases, n, false = 200, 60, 0
    for seed in range(cases):
        rng = np.random.default_rng(seed)
        quality = {f"{player} {i}": rng.normal() for player in "abcdefr" for i in range(n)}
        judge = PopulationJudge(
            lambda prompts, firsts, seconds, quality=quality: np.array(
                [
                    of_logits(np.array([quality[a], quality[b]]))[0, 1]
                    for a, b in zip(firsts, seconds, strict=True)
                ]
            )
        )
        players = {name: Player([f"{name} {i}" for i in range(n)]) for name in "abcdef"}
        references = [[f"r {i}"] for i in range(n)]
        result = tournament.play([str(i) for i in range(n)], players, judge, references, seed)
        says = " ".join(verdict(result))
        unsure = "too close to call" in says or "is preferred to every" not in says
        cycle = "goes in circles" in says
        false += not unsure or cycle or "beyond doubt: none." not in says
    assert false / cases < 0.05 + 4 * np.sqrt(0.05 * 0.95 / cases)
