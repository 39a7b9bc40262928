"""Raters: packing a template on the device, and answers as probabilities and rewards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from nlhf_jax.raters import PreferenceModel, RewardModel, pack
from tests import tiny
from tests.tiny import EOS

NETWORK = tiny.model(tiny.RATER_VOCABULARY)
PREFERENCE = PreferenceModel(NETWORK, tiny.PREFERENCE_TEMPLATE, tiny.LABELS)
REWARD = RewardModel(NETWORK, tiny.REWARD_TEMPLATE)
PARAMS = tiny.params(NETWORK, 3, scale=4.0)


@functools.cache
def _slots():
    """A text and two summaries, eight times; padding (a token that can be sampled) inside too."""
    rng = np.random.default_rng(0)
    slots = {name: tiny.texts(rng, 8, length) for name, length in [("text", 6), ("first", 4)]}
    slots["second"] = tiny.texts(rng, 8, 4)
    slots["first"][0] = (2, 0, 3, EOS)
    slots["second"][0] = (EOS, 0, 0, 0)
    slots["text"][0] = 5
    return slots


@functools.cache
def _probability(both_orders, turned=False):
    text, first, second = _slots().values()
    pair = (second, first) if turned else (first, second)
    ask = jax.jit(functools.partial(PREFERENCE.probability, both_orders=both_orders))
    return np.asarray(ask(PARAMS, text, *pair))


def _packed_by_hand(template, row):
    tokens = [
        token
        for segment in template
        for token in (_slots()[segment][row] if isinstance(segment, str) else segment)
        if token not in (0, EOS)
    ]
    length = 1 + sum(
        _slots()[segment].shape[1] if isinstance(segment, str) else len(segment)
        for segment in template
    )
    return tokens + [EOS] + [0] * (length - len(tokens) - 1)


@pytest.mark.parametrize("template", [tiny.PREFERENCE_TEMPLATE, tiny.REWARD_TEMPLATE])
def test_packing_closes_every_gap_and_ends_once(template):
    packed = np.asarray(pack(template, _slots(), tiny.TOKENS))
    assert packed.dtype == np.int32
    np.testing.assert_array_equal(packed, [_packed_by_hand(template, row) for row in range(8)])
    np.testing.assert_array_equal(np.sum(packed == EOS, axis=1), 1)


def test_packing_uses_the_whole_length_where_nothing_is_padded():
    slots = {"text": np.full((1, 3), 4, np.int32), "first": np.full((1, 2), 5, np.int32)}
    packed = pack(((6,), "text", (8,), "first"), slots, tiny.TOKENS)
    np.testing.assert_array_equal(packed, [[6, 4, 4, 4, 8, 5, 5, EOS]])


def test_a_wider_slot_changes_only_the_padding():
    wide = {name: np.pad(array, ((0, 0), (0, 3))) for name, array in _slots().items()}
    narrow, wide = (
        pack(tiny.PREFERENCE_TEMPLATE, slots, tiny.TOKENS) for slots in (_slots(), wide)
    )
    np.testing.assert_array_equal(wide[:, : narrow.shape[1]], narrow)
    assert not np.any(wide[:, narrow.shape[1] :])


def test_probability_is_the_softmax_of_the_two_answers():
    inputs = pack(tiny.PREFERENCE_TEMPLATE, _slots(), tiny.TOKENS)
    start = jnp.zeros((8, 1), jnp.int32)
    logits = jax.jit(lambda p: NETWORK.logits(p, NETWORK.encode(p, inputs), start))(PARAMS)
    answers = special.softmax(np.asarray(logits)[:, 0, list(tiny.LABELS)], axis=-1)
    np.testing.assert_allclose(_probability(both_orders=False), answers[:, 0], atol=1e-5)


def test_one_order_alone_is_biased_and_both_are_antisymmetric():
    one = _probability(both_orders=False) + _probability(both_orders=False, turned=True)
    both = _probability(both_orders=True) + _probability(both_orders=True, turned=True)
    assert np.max(np.abs(one - 1)) > 1e-2
    np.testing.assert_allclose(both, 1.0, atol=1e-6)


def test_both_orders_are_averaged():
    forward = _probability(both_orders=False)
    backward = _probability(both_orders=False, turned=True)
    expected = (forward + 1 - backward) / 2
    np.testing.assert_allclose(_probability(both_orders=True), expected, atol=1e-6)


def test_a_summary_against_itself_is_a_tie():
    text, first, _ = _slots().values()
    tie = jax.jit(PREFERENCE.probability)(PARAMS, text, first, first)
    np.testing.assert_allclose(tie, 0.5, atol=1e-6)


def test_reward_is_the_last_logit_of_the_first_answer():
    text, first, _ = _slots().values()
    inputs = pack(tiny.REWARD_TEMPLATE, _slots(), tiny.TOKENS)
    start = jnp.zeros((8, 1), jnp.int32)
    logits = jax.jit(lambda p: NETWORK.logits(p, NETWORK.encode(p, inputs), start))(PARAMS)
    rewards = jax.jit(REWARD.reward)(PARAMS, text, first)
    np.testing.assert_allclose(rewards, logits[:, 0, -1], atol=1e-5)
    assert np.std(rewards) > 0.1


def test_a_template_with_other_slots_is_refused():
    with pytest.raises(ValueError, match="has the slots \\('text', 'first'\\)"):
        PreferenceModel(NETWORK, tiny.REWARD_TEMPLATE, tiny.LABELS)
    with pytest.raises(ValueError, match="a rater of this kind fills \\('text', 'first'\\)"):
        RewardModel(NETWORK, tiny.PREFERENCE_TEMPLATE)
    with pytest.raises(ValueError, match="'first', 'first'"):
        PreferenceModel(NETWORK, ("text", "first", "first"), tiny.LABELS)


def test_the_order_of_the_slots_is_the_templates():
    template = ("first", (8,), "second", (9,), "text")
    packed = pack(PreferenceModel(NETWORK, template, tiny.LABELS).template, _slots(), tiny.TOKENS)
    np.testing.assert_array_equal(packed, [_packed_by_hand(template, row) for row in range(8)])
