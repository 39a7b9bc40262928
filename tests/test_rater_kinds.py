"""The four kinds of rater: what each computes, by other means, and what all have in common."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, logit

from nlhf_jax import raters
from nlhf_jax.errors import UserError
from nlhf_jax.raters import PreferenceEmbedding, PreferenceModel, RewardModel
from tests import tiny
from tests.tiny import EOS

NETWORK = tiny.model(tiny.RATER_VOCABULARY)
PARAMS = tiny.params(NETWORK, 3, scale=4.0)
KINDS = pytest.mark.parametrize("kind", raters.KINDS)
RNG = np.random.default_rng(0)
TEXT = tiny.texts(RNG, 6, 5)
RESPONSES = np.stack([tiny.texts(RNG, 6, 4) for _ in range(3)], axis=1)  # [6, 3, 4]
RESPONSES[0, 0] = (2, 3, 2, 4)  # one that does not end
RESPONSES[1, 0] = (2, 0, 3, EOS)  # padding is a token that can be sampled
FIRST, SECOND = RESPONSES[:, 0], RESPONSES[:, 1]


@functools.cache
def logits(kind, first=0, second=1):
    rater = tiny.rater(kind)
    ask = jax.jit(rater.both_orders)
    return np.asarray(ask(PARAMS, TEXT, RESPONSES[:, first], RESPONSES[:, second]), np.float64)


@KINDS
def test_a_description_makes_the_same_rater_again(kind):
    rater = tiny.rater(kind)
    said = json.loads(json.dumps(rater.description()))
    assert raters.from_description(kind, NETWORK, said) == rater
    assert rater.kind == kind


@KINDS
def test_both_orders_are_the_two_questions_and_the_probability_is_their_mean(kind):
    rater = tiny.rater(kind)
    forward, backward = logits(kind)
    for asked, pair in ((forward, (FIRST, SECOND)), (backward, (SECOND, FIRST))):
        np.testing.assert_allclose(jax.jit(rater.logit)(PARAMS, TEXT, *pair), asked, atol=1e-5)
    found = jax.jit(rater.probability)(PARAMS, TEXT, FIRST, SECOND)
    np.testing.assert_allclose(found, (expit(forward) + expit(-backward)) / 2, atol=1e-5)
    biased = np.max(np.abs(forward + backward)) > 1e-2
    assert biased != rater.antisymmetric
    assert np.std(forward) > 0.1


@pytest.mark.parametrize("kind", ["embedding", "antisymmetric"])
def test_padding_of_responses_changes_nothing(kind):
    ended = slice(1, None)  # one that does not end would go on in the padding
    wide = np.pad(RESPONSES, ((0, 0), (0, 0), (0, 2)))[ended]
    asked = jax.jit(tiny.rater(kind).logit)(PARAMS, TEXT[ended], wide[:, 0], wide[:, 1])
    np.testing.assert_allclose(asked, logits(kind)[0][ended], atol=1e-5)


@KINDS
def test_which_kinds_may_go_in_circles(kind):
    """s(1, 2) + s(2, 3) + s(3, 1) is 0 of differences of rewards, and else only by chance."""
    orders = [logits(kind, *pair) for pair in ((0, 1), (1, 2), (2, 0))]
    around = sum((forward - backward) / 2 for forward, backward in orders)
    if kind == "reward":
        np.testing.assert_allclose(around, 0, atol=1e-5)
    else:
        assert np.max(np.abs(around)) > 1e-2


@KINDS
def test_who_has_rewards_that_say_all_it_prefers(kind):
    rater = tiny.rater(kind)
    assert rater.rewards == (kind == "reward")
    if kind in ("preference", "antisymmetric"):
        with pytest.raises(UserError, match="has no reward of one alone"):
            rater.reward(PARAMS, TEXT, FIRST)
    alone = PreferenceEmbedding(NETWORK, cyclic=0)
    assert alone.rewards
    reward = jax.jit(alone.reward)
    expected = reward(PARAMS, TEXT, FIRST) - reward(PARAMS, TEXT, SECOND)
    np.testing.assert_allclose(
        jax.jit(alone.logit)(PARAMS, TEXT, FIRST, SECOND), expected, atol=1e-5
    )


def test_the_antisymmetric_model_is_a_pair_model_and_a_reward_model():
    pair = PreferenceModel(NETWORK, tiny.PREFERENCE_TEMPLATE, tiny.LABELS)
    reward = RewardModel(NETWORK, tiny.REWARD_TEMPLATE)
    forward, backward = jax.jit(pair.both_orders)(PARAMS, TEXT, FIRST, SECOND)
    ask = jax.jit(reward.reward)
    rewards = ask(PARAMS, TEXT, FIRST) - ask(PARAMS, TEXT, SECOND)
    expected = (forward - backward) / 2 + rewards
    np.testing.assert_allclose(logits("antisymmetric")[0], expected, atol=1e-5)


# --- the embedding -------------------------------------------------------------------------------


def test_an_embedding_is_what_the_decoder_says_after_each_token():
    """Token by token, with the caches of a rollout in place of teacher forcing."""
    rater = tiny.rater("embedding")
    found = jax.jit(rater.embed)(PARAMS, TEXT, RESPONSES)
    batch, count, length = RESPONSES.shape
    context = NETWORK.encode(PARAMS, TEXT)
    values = NETWORK.decoding_params(PARAMS)
    cache = NETWORK.start_decoding(values, context, count, length + 1)
    said = []
    for position in range(length + 1):
        start = np.full((batch, count), tiny.START, np.int32)
        tokens = RESPONSES[..., position - 1] if position else start
        step, cache = NETWORK.decode_step(values, cache, jnp.int32(position), tokens)
        said.append(np.asarray(step, np.float64)[..., -5:])
    for row, stream in itertools.product(range(batch), range(count)):
        tokens = RESPONSES[row, stream].tolist()
        read = tokens.index(EOS) + 1 if EOS in tokens else length
        numbers = np.array([said[position + 1][row, stream] for position in range(read)])
        np.testing.assert_allclose(found[row, stream, 0], numbers[:, 0].sum() / 8, atol=1e-5)
        np.testing.assert_allclose(found[row, stream, 1:], numbers[:, 1:].mean(axis=0), atol=1e-5)


def test_embeddings_are_compared_by_a_block_skew_matrix():
    """Zhang et al. 2024: <R v, v'>, R of k blocks ((0, -1), (1, 0))."""
    rater = PreferenceEmbedding(NETWORK, cyclic=2)
    turn = np.kron(np.eye(2), [[0, -1], [1, 0]])
    one, other = RNG.normal(size=(2, 7, 5))
    circular = np.einsum("ij,nj,ni->n", turn, one[:, 1:], other[:, 1:])
    found = rater.compare(one, other)
    assert isinstance(found, np.ndarray)  # judges compare on the host
    np.testing.assert_allclose(found, one[:, 0] - other[:, 0] + circular)
    np.testing.assert_allclose(rater.compare(other, one), -found)


def test_all_pairs_are_those_that_would_be_asked_one_by_one():
    rater = tiny.rater("embedding")
    found = jax.jit(rater.all_pairs)(PARAMS, TEXT, RESPONSES)
    assert found.shape == (6, 3, 3)
    for i, j in itertools.product(range(3), repeat=2):
        expected = expit(logits("embedding", i, j)[0])
        np.testing.assert_allclose(found[:, i, j], expected, atol=1e-5)


def test_without_planes_it_is_a_reward_model():
    rater = PreferenceEmbedding(NETWORK, cyclic=0)
    embedded = jax.jit(rater.embed)(PARAMS, TEXT, RESPONSES)
    assert embedded.shape == (6, 3, 1)
    found = jax.jit(rater.logit)(PARAMS, TEXT, FIRST, SECOND)
    np.testing.assert_allclose(found, embedded[:, 0, 0] - embedded[:, 1, 0], atol=1e-5)


def test_a_dominant_answer_and_a_cycle_fit_into_one_embedding():
    """A reward of 9 for one answer, and three that beat each other in a circle with 99 %."""
    rater = PreferenceEmbedding(NETWORK, cyclic=1)
    angles = 2 * np.pi * np.arange(3) / 3
    radius = np.sqrt(logit(0.99) / np.sin(2 * np.pi / 3))
    circle = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    embedded = np.concatenate([[[9.0, 0.0, 0.0]], np.pad(circle, ((0, 0), (1, 0)))])
    chance = expit(rater.compare(embedded[:, None], embedded[None]))
    assert np.all(chance[0, 1:] > 0.99)
    for i in range(3):
        assert chance[1 + i, 1 + (i + 1) % 3] == pytest.approx(0.99)
        assert chance[1 + (i + 1) % 3, 1 + i] == pytest.approx(0.01)


@pytest.mark.parametrize("tied", [False, True])
def test_fresh_logits_are_of_the_last_ones_alone(tied):
    network = tiny.model(tiny.RATER_VOCABULARY, logits_via_embedding=tied)
    params = tiny.params(network, 1)
    anew = jax.jit(functools.partial(network.fresh_last_logits, count=3))(params, jax.random.key(0))

    def said(values):  # of a text and a response without the last three tokens
        context = network.encode(values, np.full((2, 4), 5, np.int32))
        return network.logits(values, context, np.full((2, 3), 4, np.int32))

    old, new = (np.asarray(jax.jit(said)(values)) for values in (params, anew))
    np.testing.assert_allclose(new[..., :-3], old[..., :-3], atol=1e-6)
    np.testing.assert_array_equal(new[..., -3], 0)
    assert 0 < np.max(np.abs(new[..., -2:])) < np.max(np.abs(old[..., -2:]))
