"""Sampling: the sampled distribution is the scored one, with caches, streams and mixtures."""

import functools
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from nlhf_jax import opponents
from nlhf_jax.models import lockstep
from nlhf_jax.models.language_model import drawn_tokens, response_mask
from nlhf_jax.models.t5 import T5
from nlhf_jax.opponents import POLICY
from nlhf_jax.rollout import rollout, sample_responses
from nlhf_jax.studies.sequences import mixture_log_probs, responses
from tests import tiny

VOCABULARY, LENGTH, SAMPLES = 4, 3, 20_000
INPUTS = np.asarray([3, 2, 3, 1, 0], np.int32)
RESPONSES = responses(VOCABULARY, LENGTH)
NETWORK = tiny.model(VOCABULARY)
SETS = {"policy": tiny.params(NETWORK, 1, 2.0), "reference": tiny.params(NETWORK, 2, 2.0)}
MIXTURE = opponents.geometric_mixture(0.3).weights


def _rollout(players, count=SAMPLES, length=LENGTH, temperature=1.0):
    """`[count, G, T]` responses to the same prompt."""

    @jax.jit
    def run(sets):
        # The prompt is read once and its context repeated: the rows differ in their draws alone.
        contexts = {
            name: jax.tree.map(
                lambda x: jnp.repeat(x, count, axis=0), NETWORK.encode(values, INPUTS[None])
            )
            for name, values in sets.items()
        }
        key = jax.random.key(0)
        return rollout(NETWORK, players, sets, contexts, key, length, temperature)

    return np.asarray(run(SETS))


@functools.cache
def _samples():
    """y of the policy, y' of the mixture, y'' of the policy again, from one rollout."""
    return _rollout([POLICY, MIXTURE, POLICY])


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_probs(player, temperature):
    tempered = {name: weight / temperature for name, weight in player}
    return mixture_log_probs(NETWORK, tempered, SETS, INPUTS, RESPONSES)


def _distribution(player, temperature=1.0):
    probabilities = np.exp(np.asarray(_log_probs(tuple(player.items()), temperature), np.float64))
    return probabilities / probabilities.sum()


def _p_value(samples, distribution):
    """Of Pearson's chi-square test; responses that are expected less than 5 times share a bin."""
    powers = VOCABULARY ** np.arange(LENGTH)
    codes = RESPONSES @ powers
    order = np.argsort(codes)
    found = order[np.searchsorted(codes[order], samples @ powers)]
    np.testing.assert_array_equal(RESPONSES[found], samples)
    observed = np.bincount(found, minlength=len(RESPONSES))
    expected = distribution * len(samples)
    rare = expected < 5
    if rare.any():
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    return stats.chisquare(observed, expected).pvalue


def test_the_policy_samples_from_its_distribution():
    assert _p_value(_samples()[:, 0], _distribution(POLICY)) > 1e-3


def test_the_mixture_samples_from_its_distribution():
    assert _p_value(_samples()[:, 1], _distribution(MIXTURE)) > 1e-3


def test_samples_of_one_player_are_not_those_of_another():
    near = opponents.geometric_mixture(0.2).weights
    assert _p_value(_samples()[:, 1], _distribution(near)) < 1e-6
    assert _p_value(_samples()[:, 0], _distribution(MIXTURE)) < 1e-6


def test_temperature_divides_the_logits_of_the_mixture():
    samples = _rollout([MIXTURE], temperature=0.5)[:, 0]
    assert _p_value(samples, _distribution(MIXTURE, temperature=0.5)) > 1e-3


def test_temperature_zero_takes_the_most_likely_token():
    network = tiny.model(16)
    texts = tiny.texts(np.random.default_rng(0), 16, 5)

    @jax.jit
    def greedy(params):
        responses = sample_responses(network, params, texts, jax.random.key(0), 8, temperature=0.0)
        return responses, network.logits(params, network.encode(params, texts), responses)

    responses, logits = greedy(tiny.params(network, 1))
    mask = response_mask(responses, tiny.EOS)
    assert len(np.unique(responses, axis=0)) > 1
    np.testing.assert_array_equal(responses, jnp.argmax(logits, axis=-1) * mask)


@pytest.mark.parametrize(
    ("beta", "same", "player"),
    [
        (0.0, opponents.self_play().weights, POLICY),
        (1.0, opponents.best_response().weights, opponents.REFERENCE),
    ],
)
def test_the_ends_of_beta_are_self_play_and_best_response(beta, same, player):
    mixture = _rollout([POLICY, opponents.geometric_mixture(beta).weights])
    np.testing.assert_array_equal(mixture, _rollout([POLICY, same]))
    assert _p_value(mixture[:, 1], _distribution(player)) > 1e-3


@pytest.mark.parametrize(("beta", "end"), [(1e-6, 0.0), (1 - 1e-6, 1.0)])
def test_the_mixture_is_continuous_at_the_ends_of_beta(beta, end):
    near = _rollout([opponents.geometric_mixture(beta).weights], count=500)
    at = _rollout([opponents.geometric_mixture(end).weights], count=500)
    assert np.mean(np.all(near == at, axis=-1)) > 0.99


@pytest.mark.parametrize("other", [1, 2])
def test_responses_to_one_prompt_are_independent(other):
    samples = _samples()
    first, second = samples[:, 0], samples[:, other]
    counts = np.zeros((VOCABULARY, VOCABULARY))
    np.add.at(counts, (first[:, 0], second[:, 0]), 1)
    assert stats.chi2_contingency(counts).pvalue > 1e-3
    lengths = np.zeros((LENGTH, LENGTH))
    np.add.at(lengths, tuple(_lengths(y) - 1 for y in (first, second)), 1)
    assert stats.chi2_contingency(lengths).pvalue > 1e-3


def test_rows_of_a_batch_are_independent():
    """Neighbours in the batch are as often equal as two independent responses are."""
    y = _samples()[:, 0]
    equal = np.sum(np.all(y[0::2] == y[1::2], axis=-1))
    chance = np.sum(_distribution(POLICY) ** 2)
    assert stats.binomtest(int(equal), len(y) // 2, chance).pvalue > 1e-3


def test_after_the_end_of_a_response_there_is_padding():
    samples = _samples()
    assert np.any(samples[..., 0] == tiny.EOS)
    assert not np.any(samples[np.asarray(response_mask(jnp.asarray(samples), tiny.EOS)) == 0])


class CountingT5(T5):
    """Says how many decoding steps were run."""

    steps = 0

    def decode_step(self, *args):
        jax.debug.callback(self._count)
        return super().decode_step(*args)

    def _count(self):
        self.steps += 1


def test_decoding_ends_when_every_response_has_ended():
    network = CountingT5(NETWORK.config)
    texts = tiny.texts(np.random.default_rng(0), 3, 5) % VOCABULARY
    lengths = {}
    for length in (40, 80):
        network.steps = 0
        run = jax.jit(
            lambda params, length=length: sample_responses(
                network, params, texts, jax.random.key(0), length
            )
        )
        responses = np.asarray(run(SETS["policy"]))
        jax.effects_barrier()
        lengths[length] = _lengths(responses)
        assert network.steps == lengths[length].max() < 40
    np.testing.assert_array_equal(lengths[40], lengths[80])


def test_two_roles_of_one_network_share_its_steps():
    network = CountingT5(NETWORK.config)
    context = {"policy": jax.jit(network.encode)(SETS["policy"], INPUTS[None])}
    run = jax.jit(
        lambda sets: rollout(network, [POLICY, POLICY], sets, context, jax.random.key(0), LENGTH)
    )
    longest = _lengths(np.asarray(run({"policy": SETS["policy"]}))[0]).max()
    jax.effects_barrier()
    assert network.steps == longest


def test_two_networks_decode_as_one_and_write_their_caches_in_place(monkeypatch):
    """In a loop's body is one matrix product for both; a scatter would be a slow cache."""
    monkeypatch.setattr(lockstep.sharding, "alone_on_cpu", lambda: False)
    reads = {name: NETWORK.encode(values, INPUTS[None]) for name, values in SETS.items()}

    def products(players):
        names = set().union(*players)
        sets, contexts = ({name: x[name] for name in names} for x in (SETS, reads))
        run = jax.jit(
            lambda sets: rollout(NETWORK, players, sets, contexts, jax.random.key(0), LENGTH)
        )
        program = run.lower(sets).as_text()
        assert "stablehlo.while" in program and "stablehlo.scatter" not in program
        return program.count("stablehlo.dot_general")

    assert products([POLICY, MIXTURE]) == products([POLICY])


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # bfloat16 has 8 bits of mantissa; what is rounded differently is summed over the layers.
    [("float32", 2e-5), ("bfloat16", 0.1)],
)
@pytest.mark.parametrize("scanned", [False, True])
def test_cached_decoding_of_two_streams_gives_teacher_forced_logits(dtype, tolerance, scanned):
    network = tiny.model(16, layers=2, dtype=dtype, scan_layers=scanned)
    params = tiny.params(network, 1)
    rng = np.random.default_rng(0)
    length = 6
    texts = tiny.texts(rng, 4, 5)
    targets = rng.integers(0, 16, (4, 2, length)).astype(np.int32)

    @jax.jit
    def forced(params):
        context = network.encode(params, texts)
        return jnp.stack([network.logits(params, context, targets[:, g]) for g in (0, 1)], axis=1)

    @jax.jit
    def cached(params):
        context = network.encode(params, texts)
        params = network.decoding_params(params)
        inputs = jnp.pad(jnp.asarray(targets)[..., :-1], ((0, 0), (0, 0), (1, 0)))

        def step(cache, position):
            logits, cache = network.decode_step(params, cache, position, inputs[:, :, position])
            return cache, logits

        cache = network.start_decoding(params, context, 2, length)
        return jnp.moveaxis(jax.lax.scan(step, cache, jnp.arange(length))[1], 0, 2)

    assert cached(params).dtype == jnp.float32
    np.testing.assert_allclose(cached(params), forced(params), atol=tolerance)


def _lengths(responses):
    """Tokens of each response, EOS included."""
    return np.asarray(response_mask(jnp.asarray(responses), tiny.EOS).sum(axis=-1)).astype(int)


@pytest.mark.parametrize("players", [[POLICY], [POLICY, MIXTURE], [POLICY, MIXTURE, POLICY]])
def test_networks_say_the_same_as_one_and_apart(monkeypatch, players):
    streams = {
        name: [g for g, player in enumerate(players) if name in player]
        for name in sorted(set().union(*players))
    }
    reads = {name: NETWORK.encode(SETS[name], INPUTS[None]) for name in streams}
    tokens = np.asarray([[2, 3, 0][: len(players)]], np.int32)

    def logits():
        caches, step = lockstep.start_networks(NETWORK, streams, SETS, reads, LENGTH)
        first, caches = step(caches, jnp.int32(0), jnp.zeros_like(tokens))
        return first, step(caches, jnp.int32(1), tokens)[0]

    monkeypatch.setattr(lockstep.sharding, "alone_on_cpu", lambda: True)
    apart = logits()
    monkeypatch.setattr(lockstep.sharding, "alone_on_cpu", lambda: False)
    assert set(apart[0]) == {(name, g) for name, own in streams.items() for g in own}
    chex.assert_trees_all_close(logits(), apart, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 31, 8200])
def test_a_token_is_drawn_with_its_probability_also_a_rare_one(count):
    """By all pairs of uniform numbers on a grid, in place of random ones."""
    rng = np.random.default_rng(count)
    logits = np.float32(rng.normal(size=count) * 3)
    logits[rng.random(count) < 0.2] = -np.inf
    logits[0] = 0.0
    weights = np.exp(np.float64(logits))
    steps = 128
    grid = (np.arange(steps) + 0.5) / steps
    uniform = np.stack(np.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2)
    with mock.patch.object(jax.random, "uniform", lambda key, shape: jnp.float32(uniform)):
        drawn = drawn_tokens(jax.random.key(0), jnp.tile(logits, (len(uniform), 1)))
    share = np.bincount(drawn, minlength=count) / len(uniform)
    assert np.all(share[np.isinf(logits)] == 0)
    # Each of the two draws is off by less than one grid step, of what the other left.
    expected = np.cumsum(weights / weights.sum())
    np.testing.assert_allclose(np.cumsum(share), expected, atol=2 / steps)
