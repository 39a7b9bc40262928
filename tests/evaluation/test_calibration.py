"""Certainty against votes: log-loss, the reliability diagram, and temperature scaling."""

import numpy as np
import pytest
from scipy.special import expit

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.calibration import CalibratedJudge, fit_temperature
from nlhf_jax.evaluation.judges import PopulationJudge
from nlhf_jax.evaluation.votes import log_loss, rater_accuracy

COUNT = 20_000
TEXTS = [["x"] * COUNT] * 3
RNG = np.random.default_rng(0)
TRUTH = RNG.normal(size=COUNT)  # log-odds of the population for the first of two responses
VOTED_FIRST = RNG.random(COUNT) < expit(TRUTH)
FOR_CHOSEN = np.where(VOTED_FIRST, TRUTH, -TRUTH)
ONES = np.ones(COUNT)


def judge_at(temperature: float) -> PopulationJudge:
    """The population's own preference, as sure as at some temperature."""
    return PopulationJudge(lambda *texts: expit(FOR_CHOSEN / temperature))


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_the_temperature_that_made_a_judge_too_sure_is_found_again(temperature):
    judge = judge_at(temperature)
    found = fit_temperature(judge, *TEXTS, ONES)
    assert found == pytest.approx(1 / temperature, rel=0.05)
    calibrated = CalibratedJudge(judge, found)
    before = rater_accuracy("a", judge, *TEXTS, ONES, seed=0)
    after = rater_accuracy("a", calibrated, *TEXTS, ONES, seed=0)
    assert after.accuracy == before.accuracy
    assert after.log_loss <= before.log_loss
    assert after.temperature == found and before.temperature is None
    assert abs(after.overconfidence) < 0.01
    for point in after.reliability:
        assert point.certainty == pytest.approx(point.accuracy, abs=0.04)


def test_a_coin_is_made_unsure():
    sure = PopulationJudge(lambda *texts: np.where(RNG.random(COUNT) < 0.5, 0.99, 0.01))
    assert fit_temperature(sure, *TEXTS, ONES) > 50
    measured = rater_accuracy("a", sure, *TEXTS, ONES, seed=0)
    assert measured.overconfidence == pytest.approx(0.49, abs=0.02) and not measured.can_tell


def test_log_loss_is_that_of_every_vote():
    chosen, shares = np.array([0.9, 0.4, 0.5]), np.array([1.0, 0.75, 0.6])
    by_hand = -np.mean(
        [np.log(0.9), 0.75 * np.log(0.4) + 0.25 * np.log(0.6), np.log(0.5)]  # 0.6 + 0.4 of it
    )
    assert log_loss(chosen, shares) == pytest.approx(by_hand)
    assert log_loss(np.full(5, 0.5), np.ones(5)) == pytest.approx(np.log(2))


def test_bins_hold_all_comparisons_and_equal_certainties_stay_together():
    measured = rater_accuracy("a", judge_at(1.0), *TEXTS, ONES, seed=0)
    assert len(measured.reliability) == 10
    assert sum(point.comparisons for point in measured.reliability) == COUNT
    certainties = [point.certainty for point in measured.reliability]
    assert certainties == sorted(certainties) and certainties[0] >= 0.5
    same = PopulationJudge(lambda *texts: np.full(COUNT, 0.7))
    (only,) = rater_accuracy("a", same, *TEXTS, ONES, seed=0).reliability
    assert (only.comparisons, only.accuracy) == (COUNT, 1.0)
    few = rater_accuracy("a", PopulationJudge(lambda *t: np.array([0.6, 0.8])), *[["x"] * 2] * 3,
                         np.ones(2), seed=0)  # fmt: skip
    assert [point.comparisons for point in few.reliability] == [2]


def test_without_votes_there_is_nothing_to_calibrate_by():
    with pytest.raises(UserError, match="no votes by which to calibrate"):
        fit_temperature(judge_at(1.0), [], [], [], np.zeros(0))
