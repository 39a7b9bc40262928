import itertools

import numpy as np
import pytest

from nlhf_jax.evaluation import intervals, statistics


@pytest.mark.parametrize("votes", [False, True])
def test_what_one_player_wins_the_other_loses(votes):
    scores = np.random.default_rng(0).random((60, 5, 5))
    if votes:
        scores = np.round(scores)
    rates = statistics.win_rates("abcde", scores, votes=votes, seed=0)
    np.testing.assert_array_equal(rates.rate + rates.rate.T, np.ones((5, 5)))
    np.testing.assert_array_equal(rates.low + rates.high.T, np.ones((5, 5)))
    for matrix in (rates.rate, rates.low, rates.high):
        np.testing.assert_array_equal(np.diag(matrix), np.full(5, 0.5))
    assert np.all((rates.low <= rates.rate) & (rates.rate <= rates.high))
    assert rates.between("b", "d").value == pytest.approx(scores[:, 1, 3].mean())


def test_counted_votes_carry_the_interval_of_clopper_and_pearson():
    scores = np.zeros((40, 2, 2))
    scores[:13, 0, 1] = 1
    rates = statistics.win_rates(["a", "b"], scores, votes=True, seed=0)
    low, high = intervals.clopper_pearson(np.array([13]), 40)
    cell = rates.between("a", "b")
    assert (cell.value, cell.low, cell.high) == (13 / 40, low[0], high[0])
    assert rates.interval == "Clopper-Pearson"
    assert rates.is_decided("a", "b")


def votes_of(rate: np.ndarray, prompts: int, seed: int) -> np.ndarray:
    """Scores `[N, K, K]` of 0 or 1, drawn with these win rates."""
    players = len(rate)
    first = np.random.default_rng(seed).random((prompts, players, players)) < rate
    upper = np.triu(first, k=1)
    lower = np.tril(1 - np.swapaxes(upper, 1, 2), k=-1)
    return upper + lower + np.eye(players) / 2


def standings(rate, prompts=400, seed=0):
    scores = votes_of(np.asarray(rate), prompts, seed)
    names = "abcdef"[: len(rate)]
    return statistics.standings(statistics.win_rates(names, scores, False, seed), scores, seed)


CYCLE = [[0.5, 0.9, 0.3], [0.1, 0.5, 0.7], [0.7, 0.3, 0.5]]
EQUAL = np.full((2, 2), 0.5)


def test_the_standing_of_a_policy_is_its_part_in_the_game_of_the_matrix():
    scores = votes_of(np.array(CYCLE), 1000, seed=0)
    rates = statistics.win_rates("abc", scores, votes=True, seed=0)
    a, b, c = statistics.standings(rates, scores, seed=0)
    edges = [rates.between(*pair).value - 0.5 for pair in ("bc", "ca", "ab")]
    exact = np.array(edges) / np.sum(edges)
    np.testing.assert_allclose([policy.nash.value for policy in (a, b, c)], exact, atol=1e-5)
    assert [policy.win_rate_over_nash.value for policy in (a, b, c)] == pytest.approx([0.5] * 3)
    assert [policy.best_response for policy in (a, b, c)] == ["c", "a", "b"]
    worst = rates.between("c", "a")
    assert a.exploitability.value == worst.value - 0.5
    # The lower end is one that neither of two opponents is above in 1.25 of 100 cases.
    low, _ = intervals.clopper_pearson(scores[:, 2, 0].sum(), 1000, 0.0125)
    ends = pytest.approx((low - 0.5, worst.high - 0.5))
    assert (a.exploitability.low, a.exploitability.high) == ends
    assert a.exploitability.low < worst.low - 0.5


def test_a_policy_that_no_other_beats_is_not_exploitable():
    first, second = standings([[0.5, 0.8], [0.2, 0.5]])
    assert (first.name, first.best_response, second.best_response) == ("a", None, "a")
    assert first.exploitability == intervals.Estimate(0.0, 0.0, 0.0)
    assert (first.nash.low, second.nash.high) == pytest.approx((1, 0))
    assert second.win_rate_over_nash.value - 0.5 == pytest.approx(-second.exploitability.value)


def test_the_masses_of_policies_that_cannot_be_told_apart_are_said_to_be_unknown():
    for policy in standings(EQUAL, prompts=100, seed=3):
        assert (policy.nash.low, policy.nash.high) == pytest.approx((0, 1))


def test_a_cycle_is_found_once_and_in_beating_order():
    rate = np.full((4, 4), 0.5)
    for winner, loser in [(0, 2), (2, 1), (1, 0), (0, 3), (1, 3), (2, 3)]:
        rate[winner, loser], rate[loser, winner] = 0.6, 0.4
    assert statistics.cycles(rate) == [(0, 2, 1)]


def test_a_ranking_and_a_tie_have_no_cycle():
    ranking = np.where(np.arange(5)[:, None] < np.arange(5), 0.7, 0.3)
    assert statistics.cycles(ranking) == []
    assert statistics.cycles(np.full((5, 5), 0.5)) == []


def test_cyclic_triples_of_responses_agree_with_counting_them_prompt_by_prompt():
    rng = np.random.default_rng(0)
    scores = rng.random((30, 5, 5))
    scores = (scores + 1 - scores.transpose(0, 2, 1)) / 2
    texts = rng.integers(0, 4, (30, 5))
    distinct = texts[:, :, None] != texts[:, None, :]
    triples = sum(
        len({row[i], row[j], row[k]}) == 3
        for row in texts
        for i, j, k in itertools.combinations(range(5), 3)
    )
    cyclic = sum(
        len({row[i] for i in cycle}) == 3
        for row, rate in zip(texts, scores, strict=True)
        for cycle in statistics.cycles(rate)
    )
    assert statistics.count_cyclic_triples(scores, distinct) == (triples, cyclic)
    assert 0 < cyclic < triples
