"""Feature lengths against the raters' templates."""

import pytest

from nlhf_jax.data import templates
from nlhf_jax.data.templates import RaterTemplate, RewardTemplate
from nlhf_jax.errors import UserError

RATER = RaterTemplate((10, 11), (12, 13, 14), (15, 16, 17))
REWARD = RewardTemplate((10, 11), (12, 13, 14))


def test_needed_length_is_the_length_of_the_longest_input():
    assert templates.check_feature_lengths(RATER, {"text": 512, "summary": 40}) == 601
    assert templates.check_feature_lengths(REWARD, {"text": 512, "summary": 40}) == 558


def test_a_longer_input_is_padded_to_what_was_asked_for():
    lengths = {"text": 512, "summary": 40, "inputs": 640}
    assert templates.check_feature_lengths(RATER, lengths) == 640


def test_too_short_an_input_says_what_is_needed_and_why():
    with pytest.raises(UserError) as error:
        templates.check_feature_lengths(RATER, {"text": 512, "summary": 40, "inputs": 512})
    assert str(error.value) == (
        "TASK_FEATURE_LENGTHS['inputs'] is 512 but the rater's template needs 601 "
        "(text 512 + 2 x 40 + 8 + EOS); raise it or lower TASK_FEATURE_LENGTHS['text'] or "
        "['summary']"
    )


def test_a_missing_length_is_named():
    with pytest.raises(UserError, match=r"TASK_FEATURE_LENGTHS has no 'summary' \(it has \['text'"):
        templates.check_feature_lengths(RATER, {"text": 512})


@pytest.mark.parametrize("length", [0, 1, -4, 2.5, "40"])
def test_a_length_that_is_none_is_named(length):
    with pytest.raises(UserError, match=r"TASK_FEATURE_LENGTHS\['summary'\] is "):
        templates.check_feature_lengths(RATER, {"text": 512, "summary": length})


def test_segments_are_in_the_order_in_which_raters_read(vocabulary):
    segments = templates.rater_segments(vocabulary).segments
    text = [s if isinstance(s, str) else vocabulary.decode(s) for s in segments]
    assert text[0] == templates.RATER_INSTRUCTION.lower()
    assert text[1:] == ["text", ", summary 1 -", "first", ", summary 2 -", "second"]
    segments = templates.reward_segments(vocabulary).segments
    text = [s if isinstance(s, str) else vocabulary.decode(s) for s in segments]
    assert text[1:] == ["text", ", summary -", "first"]
