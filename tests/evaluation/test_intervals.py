import tracemalloc

import numpy as np
import pytest
from scipy import stats

from nlhf_jax.evaluation import intervals


@pytest.mark.parametrize("n", [1, 2, 7, 40, 300])
def test_clopper_pearson_covers_the_true_rate_95_times_in_100_at_every_rate(n):
    wins = np.arange(n + 1)
    low, high = intervals.clopper_pearson(wins, n)
    for rate in np.linspace(0, 1, 101):
        covered = (low <= rate + 1e-12) & (rate - 1e-12 <= high)
        assert stats.binom.pmf(wins, n, rate) @ covered >= 0.95


def test_clopper_pearson_ends_are_the_rates_at_which_the_outcome_has_a_tail_of_one_fortieth():
    low, high = intervals.clopper_pearson(np.array([13]), 40)
    assert stats.binom.sf(12, 40, low[0]) == pytest.approx(0.025)
    assert stats.binom.cdf(13, 40, high[0]) == pytest.approx(0.025)


def test_clopper_pearson_has_its_closed_form_when_all_or_none_are_won():
    low, high = intervals.clopper_pearson(np.array([0, 25]), 25)
    np.testing.assert_allclose(low, [0, 0.025 ** (1 / 25)])
    np.testing.assert_allclose(high, [1 - 0.025 ** (1 / 25), 1])


def test_2000_comparisons_give_the_half_width_that_the_paper_states():
    low, high = intervals.clopper_pearson(np.arange(2001), 2000)
    assert 0.022 < np.max(high - low) / 2 <= 0.023


@pytest.mark.parametrize(("wins", "n"), [(0.5, 10), (11, 10), (-1, 10), (0, 0)])
def test_clopper_pearson_refuses_what_are_not_votes(wins, n):
    with pytest.raises(ValueError, match="whole votes"):
        intervals.clopper_pearson(np.array([wins]), n)


def test_prompts_by_the_hundred_thousand_need_no_more_memory_than_a_few(monkeypatch):
    """The counts of 200 resamples at once are 160 MB; of 4,000, 3.2 GB."""
    scores = np.random.default_rng(0).random(100_000)
    monkeypatch.setattr(intervals, "RESAMPLES", 200)
    tracemalloc.start()
    intervals.bootstrap_mean(scores, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6


def test_resamples_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch):
    scores = np.random.default_rng(0).random((50, 2))
    at_once = intervals.resampled_means(scores, seed=3)
    monkeypatch.setattr(intervals, "_COUNTS_AT_ONCE", 333)
    np.testing.assert_allclose(intervals.resampled_means(scores, seed=3), at_once, rtol=1e-12)


def test_votes_on_one_post_are_drawn_together():
    """Of groups of equal numbers, their means are all there is to draw."""
    each = np.random.default_rng(0).random(40)
    together = intervals.bootstrap_mean_of_groups(np.repeat(each, 8), np.arange(320) // 8, seed=1)
    alone = intervals.bootstrap_mean(each, seed=1)
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high))
    assert together.value == pytest.approx(alone.value)


def test_groups_of_several_sizes_count_by_their_sizes():
    groups = np.array([0, 1, 1, 1])
    found = intervals.bootstrap_mean_of_groups(np.array([1.0, 0.0, 0.0, 0.0]), groups, seed=0)
    assert (found.low, found.value, found.high) == (0, 0.25, 1)


def test_p_values_are_those_of_scipy():
    rng = np.random.default_rng(0)
    scores, votes = rng.beta(3, 2, (40, 3)), (rng.random((40, 3)) < 0.6).astype(float)
    expected = stats.ttest_1samp(scores, 0.5).pvalue
    np.testing.assert_allclose(intervals.p_values(scores, votes=False), expected)
    exact = [stats.binomtest(int(wins), 40).pvalue for wins in votes.sum(axis=0)]
    np.testing.assert_allclose(intervals.p_values(votes, votes=True), exact)


def test_a_few_equal_scores_are_no_certainty():
    """Their deviation is 0; a coin shows the same side of itself 4 times in 1 of 8 cases."""
    assert intervals.p_values(np.full(4, 0.9), votes=False) == 1 / 8
    assert intervals.p_values(np.full(1, 0.9), votes=False) == 1
    assert intervals.p_values(np.full(4, 0.5), votes=False) == 1


def test_holm_s_own_procedure():
    """The smallest is held against 5 % of four, the next against 5 % of three, until one fails."""
    p = np.array([0.04, 0.01, 0.03, 0.005])
    assert intervals.hold_together(p).tolist() == [False, True, False, True]
    assert intervals.hold_together(np.array([0.04, 0.025])).tolist() == [True, True]
    assert intervals.hold_together(np.array([0.026, 0.04])).tolist() == [False, False]


def test_bootstrap_of_zeros_and_ones_has_the_binomial_percentiles():
    # The resampled mean of k ones among n is Binomial(n, k / n) / n, exactly.
    n, k = 400, 120
    low, high = intervals.bootstrap(np.repeat([1.0, 0.0], [k, n - k]), seed=0)
    exact = stats.binom.ppf([0.025, 0.975], n, k / n) / n
    np.testing.assert_allclose([low, high], exact, atol=2 / n)


def test_bootstrap_depends_on_the_seed_alone():
    scores = np.random.default_rng(0).random((50, 3, 2))
    first, again = (np.stack(intervals.bootstrap(scores, seed=4)) for _ in range(2))
    assert first.shape == (2, 3, 2)
    np.testing.assert_array_equal(first, again)
    assert np.any(first != np.stack(intervals.bootstrap(scores, seed=5)))


def test_bootstrap_of_one_column_is_that_of_the_column_alone():
    scores = np.random.default_rng(0).random((50, 3))
    low, high = intervals.bootstrap(scores, seed=4)
    alone = intervals.bootstrap_mean(scores[:, 1], seed=4)
    assert (alone.low, alone.high) == pytest.approx((low[1], high[1]))
    assert alone.value == pytest.approx(scores[:, 1].mean())
