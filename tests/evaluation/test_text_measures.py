import pytest

from nlhf_jax.evaluation.text_measures import TextMeasures, measure


def test_distinct_n_is_over_all_responses():
    found = measure(["x"] * 3, ["the cat sat", "The cat ran!", "a"])
    assert found.distinct_1 == 5 / 7  # the, cat, sat, ran, a
    assert found.distinct_2 == 3 / 4  # the cat, cat sat, cat ran


def test_repetition_is_within_a_response_and_responses_count_alike():
    found = measure(["x"] * 3, ["no no no no", "yes or no", "short"])
    assert found.repetition == pytest.approx((2 / 3 + 0) / 2)  # a single word has no pair


def test_novelty_is_the_share_of_words_that_the_prompt_does_not_have():
    found = measure(["My dog ate it.", "my cat"], ["the DOG ate cake", "my cat"])
    assert found.novelty == pytest.approx((2 / 4 + 0) / 2)


def test_of_responses_without_words_nothing_is_said():
    assert measure(["x", "y"], ["", " ..."]) == TextMeasures(None, None, None, None)
