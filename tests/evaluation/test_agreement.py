import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import agreement

# Fleiss 1971, table 1: how many of six psychiatrists gave each of 30 patients which of 5 diagnoses.
FLEISS = """
00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031
00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006
"""


def raters(rng, judges, comparisons, agree, ties=0.2):
    """Answers `[J, N]` of judges who say what is true with probability `agree`, else anything."""
    kinds, chance = [1.0, 0.5, 0.0], [(1 - ties) / 2, ties, (1 - ties) / 2]
    truth = rng.choice(kinds, comparisons, p=chance)
    guesses = rng.choice(kinds, (judges, comparisons), p=chance)
    return np.where(rng.random((judges, comparisons)) < agree, truth, guesses)


def test_two_judges_agree_as_scikit_learn_counts_it():
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, other = raters(rng, 2, rng.integers(5, 80), rng.random())
        found = agreement.between(np.stack([one, other]), np.arange(len(one)))
        labels = [(2 * answers).astype(int) for answers in (one, other)]
        assert found.name == "Cohen's kappa"
        assert found.kappa.value == pytest.approx(cohen_kappa_score(*labels), abs=1e-12)
        assert found.agreeing == pytest.approx(np.mean(one == other))


def test_several_judges_agree_as_statsmodels_counts_it():
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater", reason="no statsmodels")
    rng = np.random.default_rng(1)
    for _ in range(20):
        answers = raters(rng, rng.integers(3, 8), rng.integers(5, 80), rng.random())
        counts, _ = inter_rater.aggregate_raters((2 * answers.T).astype(int), n_cat=3)
        found = agreement.between(answers, np.arange(answers.shape[1]))
        assert found.name == "Fleiss' kappa"
        assert found.kappa.value == pytest.approx(inter_rater.fleiss_kappa(counts), abs=1e-12)


def test_the_example_that_fleiss_published():
    counts = np.array([[int(digit) for digit in row] for row in FLEISS.split()])
    assert counts.shape == (30, 5) and np.all(counts.sum(axis=1) == 6)
    np.testing.assert_array_equal(counts.sum(axis=0), [26, 26, 30, 55, 43])  # its last line
    assert agreement.fleiss_kappa(counts) == pytest.approx(0.430, abs=5e-4)


def test_kappa_is_one_among_the_same_and_about_zero_by_chance():
    rng = np.random.default_rng(2)
    one = raters(rng, 1, 400, 1.0)
    assert agreement.between(np.repeat(one, 4, axis=0), np.arange(400)).kappa.value == 1
    for judges in (2, 5):
        by_chance = agreement.between(raters(rng, judges, 4000, 0.0), np.arange(4000) % 99).kappa
        assert abs(by_chance.value) < 0.05
        assert by_chance.low < by_chance.value < by_chance.high


@pytest.mark.parametrize("judges", [2, 3])
def test_kappa_of_one_kind_of_answer_is_not_defined(judges):
    found = agreement.between(np.ones((judges, 9)), np.arange(9))
    assert np.isnan([found.kappa.value, found.kappa.low, found.kappa.high]).all()
    assert found.agreeing == 1


def test_a_tie_agrees_with_ties_only():
    one, other = np.array([[0.5, 0.5, 1, 0], [0.5, 1, 1, 0.5]])
    assert agreement.between(np.stack([one, other]), np.arange(4)).agreeing == 0.5


def test_how_sure_a_judge_is_does_not_count():
    rng = np.random.default_rng(3)
    answers = raters(rng, 2, 60, 0.5)
    unsure = 0.5 + (answers - 0.5) * rng.uniform(0.1, 1, answers.shape)
    prompts = np.arange(60)
    assert agreement.between(unsure, prompts) == agreement.between(answers, prompts)


@pytest.mark.parametrize("judges", [2, 4])
def test_in_both_orders_it_does_not_matter_which_response_is_called_the_first(judges):
    rng = np.random.default_rng(4)
    answers = raters(rng, judges, 50, 0.6)
    exchanged = rng.random(50) < 0.5
    other = np.where(exchanged, 1 - answers, answers)
    prompts = rng.integers(0, 20, 50)
    one, two = (
        agreement.between(found, prompts, both_orders=True).kappa for found in (answers, other)
    )
    np.testing.assert_allclose([one.value, one.low, one.high], [two.value, two.low, two.high])


def test_a_liking_for_what_stands_first_is_no_agreement():
    """Two who look at the place alone say the same often; kappa in the order shown sees through."""
    rng = np.random.default_rng(5)
    answers = (rng.random((2, 4000)) < 0.9).astype(float)
    prompts = np.arange(4000) % 99
    found = agreement.between(answers, prompts)
    assert found.agreeing > 0.8
    assert abs(found.kappa.value) < 0.06
    assert agreement.between(answers, prompts, both_orders=True).kappa.value > 0.5


def test_comparisons_that_somebody_left_open_do_not_count():
    rng = np.random.default_rng(6)
    answers = raters(rng, 3, 40, 0.6)
    left = answers.copy()
    left[1, 30:35] = left[2, 35:] = np.nan
    assert agreement.between(left, np.arange(40)) == agreement.between(
        answers[:, :30], np.arange(30)
    )
    left[0, :30] = np.nan
    with pytest.raises(UserError, match="no comparison that all 3 judges have answered"):
        agreement.between(left, np.arange(40))


@pytest.mark.parametrize("judges", [2, pytest.param(4, marks=pytest.mark.long)])
def test_intervals_hold_the_true_kappa_where_several_comparisons_share_a_prompt(judges):
    """Judges who see the truth with probability a, alone, agree beyond chance by a squared.

    On half of the prompts all comparisons are easy, on half all are guessed: the 4 comparisons of
    one prompt are worth far less than 4. Of 80 intervals at least 70 hold it; intervals that take
    the comparisons for independent hold it less often.
    """
    rng = np.random.default_rng(7)
    held = {"prompts": 0, "comparisons": 0}
    for seed in range(80):
        easy = np.repeat(rng.random(25) < 0.5, 4)
        answers = np.where(easy, raters(rng, judges, 100, 1.0), raters(rng, judges, 100, 0.0))
        for name, groups in (("prompts", np.arange(100) // 4), ("comparisons", np.arange(100))):
            found = agreement.between(answers, groups, seed).kappa
            held[name] += found.low <= 0.5 <= found.high
    assert held["prompts"] >= 70
    assert held["comparisons"] < held["prompts"] - 8
