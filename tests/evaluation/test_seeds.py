"""Several runs of one setting."""

import numpy as np
import pytest
from scipy import stats

from nlhf_jax.evaluation import statistics
from nlhf_jax.evaluation.seeds import over_seeds, settings_of


def rates_of(names, rate) -> statistics.WinRates:
    rate = np.asarray(rate, np.float64)
    return statistics.WinRates(tuple(names), rate, rate - 0.1, rate + 0.1, 100, "bootstrap", rate)


def table(skills) -> np.ndarray:
    return np.clip(0.5 + np.subtract.outer(skills, skills), 0, 1)


def test_names_say_which_runs_are_of_one_setting():
    found = settings_of(["SFT", "Nash-MD#0", "RLHF#1", "Nash-MD#1", "a#b"])
    assert found == {
        "SFT": ("SFT",), "Nash-MD": ("Nash-MD#0", "Nash-MD#1"), "RLHF": ("RLHF#1",), "a#b": ("a#b",)
    }  # fmt: skip


def test_against_one_fixed_run_it_is_student_s_interval_of_the_runs():
    skills = [0.0, 0.10, 0.16, 0.13]
    rates = rates_of("abcd", table(skills))
    found = over_seeds(rates, {"fixed": ["a"], "new": ["b", "c", "d"]})
    theirs = stats.ttest_1samp(rates.rate[1:, 0], 0.5)
    cell = found.between("new", "fixed")
    assert cell.value == pytest.approx(0.63)
    interval = theirs.confidence_interval()
    assert (cell.low, cell.high) == pytest.approx((interval.low, interval.high))
    assert found.p[1, 0] == found.p[0, 1] == pytest.approx(theirs.pvalue)
    assert found.between("fixed", "new").low == pytest.approx(1 - cell.high)
    assert found.n == 3 and found.is_decided("new", "fixed")


def test_between_two_settings_whose_runs_add_up_it_is_welch_s():
    skills = np.array([0.0, 0.05, 0.02, 0.10, 0.16, 0.13, 0.2])
    found = over_seeds(rates_of("abcdefg", table(skills)), {"old": "abc", "new": "defg"})
    theirs = stats.ttest_ind(skills[3:], skills[:3], equal_var=False)
    assert found.p[0, 1] == pytest.approx(theirs.pvalue)
    interval, cell = theirs.confidence_interval(), found.between("new", "old")
    assert (cell.low - 0.5, cell.high - 0.5) == pytest.approx((interval.low, interval.high))


def test_two_single_runs_keep_their_cell():
    rates = rates_of("ab", table([0.1, 0]))
    found = over_seeds(rates, settings_of(["a", "b"]))
    assert found.between("b", "a") == rates.between("b", "a")


def test_copies_of_a_run_show_nothing():
    found = over_seeds(rates_of("abc", table([0.3, 0.3, 0])), {"x": "ab", "y": "c"})
    assert (found.between("x", "y").low, found.between("x", "y").high) == (0, 1)
    assert not found.is_decided("x", "y")


def test_equal_settings_are_told_apart_in_at_most_five_of_a_hundred_tables():
    rng, cases, false, held = np.random.default_rng(0), 400, 0, []
    for _ in range(cases):
        rates = rates_of("abcdefghi", table(rng.normal(0, 0.05, 9)))
        found = over_seeds(rates, {"x": "abc", "y": "def", "z": "ghi"})
        false += any(found.is_decided(a, b) for a in "xyz" for b in "xyz")
        held.append(found.low[0, 1] <= 0.5 <= found.high[0, 1])
    assert false / cases < 0.05 + 4 * np.sqrt(0.05 * 0.95 / cases)
    assert np.mean(held) > 0.94 - 4 * np.sqrt(0.05 * 0.95 / cases)


def test_a_run_that_does_not_play_is_refused():
    for groups in ({"x": ["a", "z"]}, {"x": ["a"], "y": ["a"]}, {"x": []}):
        with pytest.raises(ValueError, match="different players"):
            over_seeds(rates_of("ab", table([0, 0])), groups)
