import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.data.vocabularies import tldr_mini_vocabulary
from nlhf_jax.evaluation.judges import PreferenceModelJudge, RewardModelJudge
from nlhf_jax.models.language_model import T5_TOKENS
from tests.evaluation.games import referee, rock_paper_scissors

THROWS = ["rock", "paper", "scissors"]


def test_the_population_gives_its_exact_preference():
    answer = referee().compare(["x"] * 3, THROWS, ["scissors", "scissors", "scissors"])
    np.testing.assert_allclose(answer, [0.9, 0.1, 0.5])


def test_votes_are_drawn_with_the_population_s_probability():
    prompts = [f"prompt {number}" for number in range(4000)]
    firsts = [THROWS[number % 3] for number in range(4000)]
    seconds = [THROWS[number // 3 % 3] for number in range(4000)]
    votes = referee(votes=True).compare(prompts, firsts, seconds)
    exact = rock_paper_scissors(prompts, firsts, seconds)
    assert set(votes) == {0.0, 1.0}
    for probability in (0.1, 0.5, 0.9):
        here = np.isclose(exact, probability)
        sigma = np.sqrt(probability * (1 - probability) / here.sum())
        assert abs(votes[here].mean() - probability) < 4 * sigma


def test_a_vote_is_cast_once_whichever_order_and_call_it_is_asked_in():
    prompts = [f"prompt {number}" for number in range(200)]
    firsts, seconds = ["rock"] * 200, ["paper"] * 200
    judge = referee(votes=True, seed=3)
    votes = judge.compare(prompts, firsts, seconds)
    np.testing.assert_array_equal(judge.compare(prompts, seconds, firsts), 1 - votes)
    np.testing.assert_array_equal(
        judge.compare(prompts[50:], firsts[50:], seconds[50:]), votes[50:]
    )
    assert np.any(referee(votes=True, seed=4).compare(prompts, firsts, seconds) != votes)


@jax.jit
def longer_and_first(text, first, second):
    """A rater that likes length, and the place of the first response."""
    words = [jnp.sum(tokens != 0, axis=1) for tokens in (first, second)]
    return jax.nn.sigmoid(0.1 * (words[0] - words[1]) + 0.01 * jnp.sum(text, axis=1) % 1 + 0.7)


def longer_judge(batch_size=4, probability=longer_and_first):
    return PreferenceModelJudge(
        probability, tldr_mini_vocabulary().encode, T5_TOKENS, 16, 12, batch_size
    )


PROMPTS = ["my sister took the car", "the landlord", "a long week at work", "x", "y", "z", "w"]
FIRSTS = ["car gone", "landlord is late again with the repair", "work", "a b", "c", "", "e"]
SECONDS = ["the car is gone since monday", "late", "work was long", "a b", "d d d", "f", ""]


def test_the_preference_model_has_no_order_bias_left():
    judge = longer_judge()
    forward = judge.compare(PROMPTS, FIRSTS, SECONDS)
    np.testing.assert_allclose(forward + judge.compare(PROMPTS, SECONDS, FIRSTS), 1, atol=1e-7)
    assert forward[3] == pytest.approx(0.5)  # equal texts
    assert forward[0] < 0.5 < forward[1]


def tokens(text, length):
    ids = tldr_mini_vocabulary().encode(text)[: length - 1] + [1]
    return np.array([ids + [0] * (length - len(ids))], np.int32)


def test_the_answer_is_the_mean_over_both_orders_row_by_row():
    answer = longer_judge().compare(PROMPTS, FIRSTS, SECONDS)
    for row, (prompt, first, second) in enumerate(zip(PROMPTS, FIRSTS, SECONDS, strict=True)):
        text, y, other = tokens(prompt, 16), tokens(first, 12), tokens(second, 12)
        forward = float(longer_and_first(text, y, other)[0])
        backward = float(longer_and_first(text, other, y)[0])
        assert answer[row] == pytest.approx((forward + 1 - backward) / 2, abs=1e-6)


def test_batch_size_does_not_change_the_answer_and_the_model_compiles_once():
    compilations = []

    @jax.jit
    def counted(text, first, second):
        compilations.append(text.shape)
        return longer_and_first(text, first, second)

    answer = longer_judge(3, counted).compare(PROMPTS, FIRSTS, SECONDS)
    assert compilations == [(3, 16)]
    for batch_size in (1, 7, 32):
        other = longer_judge(batch_size).compare(PROMPTS, FIRSTS, SECONDS)
        np.testing.assert_allclose(other, answer, atol=1e-7)


def test_long_text_is_cut_to_the_feature_length_and_keeps_its_eos():
    seen = []

    def look(text, first, second):
        seen.append((text, first, second))
        return np.full(len(text), 0.5, np.float32)

    judge = PreferenceModelJudge(look, lambda text: [ord(c) for c in text], T5_TOKENS, 6, 4, 2)
    judge.compare(["abcdefgh"], ["xyz"], [""])
    text, first, second = seen[0]
    assert text.tolist() == [[97, 98, 99, 100, 101, 1]] * 2
    assert first.tolist() == [[120, 121, 122, 1]] * 2
    assert second.tolist() == [[1, 0, 0, 0]] * 2
    assert text.dtype == np.int32


def test_nothing_to_compare_gives_no_answers():
    assert longer_judge().compare([], [], []).shape == (0,)


@jax.jit
def reward(text, response):
    """Likes length and, depending on the text, the sound of the response."""
    sound = jnp.sin(jnp.sum(text, axis=1) * jnp.sum(response, axis=1) * 0.01)
    return 0.3 * jnp.sum(response != 0, axis=1) + sound


@pytest.mark.parametrize("batch_size", [1, 3, 7, 32])  # of 7 pairs: 3 leaves one over
def test_a_reward_model_prefers_by_the_difference_of_its_rewards(batch_size):
    judge = RewardModelJudge(reward, tldr_mini_vocabulary().encode, T5_TOKENS, 16, 12, batch_size)
    forward = judge.compare(PROMPTS, FIRSTS, SECONDS)
    backward = judge.compare(PROMPTS, SECONDS, FIRSTS)
    np.testing.assert_allclose(forward + backward, 1, atol=1e-12)
    assert forward[3] == 0.5  # equal texts
    for row, (prompt, first, second) in enumerate(zip(PROMPTS, FIRSTS, SECONDS, strict=True)):
        text = tokens(prompt, 16)
        margin = float(reward(text, tokens(first, 12))[0] - reward(text, tokens(second, 12))[0])
        assert forward[row] == pytest.approx(1 / (1 + np.exp(-margin)), abs=1e-6)
    assert not judge.votes
