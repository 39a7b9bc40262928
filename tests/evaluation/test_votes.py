import itertools

import numpy as np
import pytest

from nlhf_jax.data.tldr_mini import population
from nlhf_jax.data.tldr_mini import text as tldr_mini_text
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import intervals
from nlhf_jax.evaluation.judges import PopulationJudge
from nlhf_jax.evaluation.votes import rater_accuracy
from nlhf_jax.learners.votes import vote_accuracy
from tests.evaluation.games import referee


def constant(answer: float) -> PopulationJudge:
    return PopulationJudge(lambda prompts, firsts, seconds: np.full(len(prompts), answer))


@pytest.mark.parametrize(
    ("answer", "accuracy"), [(1.0, 0.8), (0.51, 0.8), (0.5, 0.5), (0.49, 0.2), (0.0, 0.2)]
)
def test_what_a_judge_prefers_counts_and_not_how_much(answer, accuracy):
    texts = [["x"] * 3] * 3
    measured = rater_accuracy("a", constant(answer), *texts, np.array([1.0, 0.8, 0.6]), seed=0)
    assert (measured.name, measured.comparisons) == ("a", 3)
    assert measured.accuracy.value == pytest.approx(accuracy)


def test_each_comparison_counts_the_votes_that_agree_and_a_tie_half():
    chosen, rejected = ["rock", "scissors", "paper"], ["scissors", "rock", "paper"]
    posts = ["w", "x", "y"]
    measured = rater_accuracy("a", referee(), posts, chosen, rejected, [1.0, 0.75, 1.0], seed=4)
    assert measured.accuracy == intervals.bootstrap_mean(np.array([1.0, 0.25, 0.5]), seed=4)


def test_votes_on_one_post_are_one_piece_of_evidence():
    """Four posts with 50 votes each of one opinion say as much as four votes."""
    posts = np.repeat(["a", "b", "c", "d"], 50).tolist()
    weights = np.repeat([1.0, 0.6, 0.9, 0.7], 50)
    texts = (posts, ["rock"] * 200, ["scissors"] * 200)
    measured = rater_accuracy("a", referee(), *texts, weights, seed=4)
    four = intervals.bootstrap_mean(weights[::50], seed=4)
    assert (measured.comparisons, measured.posts) == (200, 4)
    assert (measured.accuracy.low, measured.accuracy.high) == pytest.approx((four.low, four.high))


def test_the_rule_is_that_of_the_learners():
    answers = np.random.default_rng(0).integers(0, 5, 200) / 4
    weights = np.random.default_rng(1).uniform(0.51, 1, 200)
    judge = PopulationJudge(lambda *texts: answers)
    measured = rater_accuracy("a", judge, *[["x"] * 200] * 3, weights, seed=0)
    theirs = float(np.mean(vote_accuracy(answers - 0.5, weights)))
    assert measured.accuracy.value == pytest.approx(theirs, abs=1e-6)


def test_the_population_predicts_its_own_votes_as_well_as_counted_one_by_one():
    votes = list(itertools.islice(tldr_mini_text.votes("test"), 300))
    agreeing = []
    for vote in votes:
        exact = population.preference(vote.post.text, vote.chosen, vote.rejected)
        weight = vote.weight
        agreeing.append(0.5 if exact == 0.5 else weight if exact > 0.5 else 1 - weight)
    measured = rater_accuracy(
        "population",
        PopulationJudge(population.preferences),
        [vote.post.text for vote in votes],
        [vote.chosen for vote in votes],
        [vote.rejected for vote in votes],
        np.array([vote.weight for vote in votes], np.float32),
        seed=0,
    )
    assert measured.accuracy.value == pytest.approx(np.mean(agreeing), abs=1e-6)
    assert 0.5 < measured.accuracy.low < measured.accuracy.high < 1


def test_without_comparisons_there_is_nothing_to_measure():
    with pytest.raises(UserError, match="no comparisons on which to measure the rater 'a'"):
        rater_accuracy("a", referee(), [], [], [], np.zeros(0), seed=0)


def test_answers_that_are_no_probabilities_are_not_counted():
    with pytest.raises(ValueError, match="outside"):
        rater_accuracy("a", constant(np.nan), ["x"], ["y"], ["z"], np.ones(1), seed=0)
