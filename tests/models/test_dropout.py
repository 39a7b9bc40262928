"""Dropout: T5's, in training alone, from keys of its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.jobs import setup
from nlhf_jax.learners.learner import accumulate_gradients
from nlhf_jax.models.language_model import LanguageModel
from nlhf_jax.models.t5_layers import Dropout
from nlhf_jax.rollout import sample_responses
from tests import tiny

RATE = 0.25
LEARNERS = pytest.mark.parametrize(
    "kind",
    [*(pytest.param(k, marks=pytest.mark.long) for k in ("supervised", "preference")), "embedding"],
)


def network(rate=RATE, **settings):
    return tiny.model(
        tiny.RATER_VOCABULARY, emb_dim=16, heads=4, layers=2, dropout_rate=rate, **settings
    )


def placed_batch(learner, kind, index=0):
    return learner.partitioner.place_batch(tiny.batch(kind, index))


def assert_all(compare, *trees, **tolerance):
    jax.tree.map(functools.partial(compare, **tolerance), *jax.device_get(trees))


def test_a_share_of_the_features_is_zero_at_all_positions_and_the_rest_keeps_the_mean():
    x = jnp.ones((50, 7, 200))
    found = np.asarray(Dropout(RATE).apply({}, x, rngs={"dropout": jax.random.key(0)}))
    assert set(np.unique(found)) == {0.0, np.float32(1 / (1 - RATE))}
    np.testing.assert_array_equal(found, np.broadcast_to(found[:, :1], found.shape))
    draws = 50 * 200
    assert abs(np.mean(found == 0) - RATE) < 5 * np.sqrt(RATE * (1 - RATE) / draws)
    np.testing.assert_array_equal(Dropout(RATE).apply({}, x), x)


def outputs(model, params):
    """Encodings and logits of some texts."""
    rng = np.random.default_rng(0)
    inputs, targets = tiny.texts(rng, 3, 5), tiny.texts(rng, 3, 4)
    context = model.encode(params, inputs)
    return context.encoded, model.logits(params, context, targets)


@pytest.mark.parametrize("scanned", [False, True], ids=["per layer", "scanned"])
def test_every_layer_has_it_and_draws_for_itself(scanned):
    """At a rate close to 1 hardly anything is left; were a place forgotten, all of it would be."""
    model = network(0.999, scan_layers=scanned)
    params = tiny.params(model, 1)
    encoded, logits = outputs(model.with_dropout(jax.random.key(0)), params)
    assert np.mean(np.asarray(encoded) == 0) > 0.98
    assert np.mean(np.asarray(logits) == 0) > 0.5  # Whole rows are 0 where no feature is left.
    seen = {float(x) for key in range(3) for x in _half_dropped(scanned, key)}
    assert len(seen) == 6


def _half_dropped(scanned, key):
    model = network(0.5, scan_layers=scanned)
    encoded, logits = outputs(model.with_dropout(jax.random.key(key)), tiny.params(model, 1))
    return encoded.sum(), logits.sum()


def test_without_a_rate_nothing_changes():
    model = network(0.0)
    assert model.with_dropout(jax.random.key(0)) is model
    assert LanguageModel.with_dropout(model, jax.random.key(0)) is model


def test_encoding_reading_and_rollouts_are_those_without():
    plain, dropping = network(0.0), network()
    params = tiny.params(plain, 1)
    assert_all(np.testing.assert_array_equal, outputs(plain, params), outputs(dropping, params))
    inputs = tiny.texts(np.random.default_rng(0), 4, 5)
    sampled = [
        jax.jit(lambda p, m=m: sample_responses(m, p, inputs, jax.random.key(0), 4))(params)
        for m in (plain, dropping)
    ]
    assert_all(np.testing.assert_array_equal, *sampled)
    assert dropping.description() == plain.description()


@LEARNERS
def test_training_drops_and_evaluation_does_not(kind):
    losses, evaluations = [], []
    for model in (network(0.0), network()):
        learner = tiny.learner(kind, model)
        batch, state = placed_batch(learner, kind), learner.init()
        valid = learner.partitioner.place_batch(
            {**tiny.batch(kind, 0), "valid": np.ones(8, np.float32)}
        )
        evaluations.append(learner.eval_step(state, valid))
        losses.append(float(learner.train_step(state, batch)[1]["loss"]))
    assert_all(np.testing.assert_array_equal, *evaluations)
    assert losses[0] == pytest.approx(float(evaluations[0]["loss"]), rel=1e-6)
    assert abs(losses[1] - losses[0]) > 1e-3 * losses[0]


@LEARNERS
def test_what_is_dropped_is_a_function_of_seed_and_step(kind):
    """So a run that continues from a checkpoint drops what it would have dropped."""

    learners = {seed: tiny.learner(kind, network(), seed=seed) for seed in (0, 1)}

    def loss(seed, step):
        learner = learners[seed]
        state = learner.init().replace(step=jnp.int32(step))
        return float(learner.train_step(state, placed_batch(learner, kind))[1]["loss"])

    assert loss(0, 5) == loss(0, 5)
    assert len({loss(0, 5), loss(0, 6), loss(1, 5)}) == 3


@pytest.mark.long
def test_parts_of_a_batch_draw_for_themselves():
    """MICROBATCHES = 2 is the sum over two parts, each with the dropout of its first row's key."""
    learner = tiny.learner("supervised", network())
    state, batch = learner.init(), placed_batch(learner, "supervised")
    rows, _ = learner.rows(state, None, batch)
    assert len(np.unique(jax.random.key_data(rows["dropout_keys"]), axis=0)) == 8

    def loss(params, part):
        return learner.loss(params, None, part)

    found = jax.jit(lambda p: accumulate_gradients(loss, p, rows, 2))(state.params)
    parts = [jax.tree.map(lambda x, i=i: x[i::2], rows) for i in range(2)]
    each = [
        jax.jit(lambda p, part=part: jax.grad(loss, has_aux=True)(p, part))(state.params)
        for part in parts
    ]
    wanted = jax.tree.map(jnp.add, *each)
    assert_all(np.testing.assert_allclose, found, wanted, rtol=1e-5, atol=1e-7)


def test_a_family_without_it_refuses_it():
    with pytest.raises(UserError, match=r"DROPOUT is 1.5 but must be"):
        setup.as_trained(network(0.0), None, 1.5)
    model = setup.as_trained(network(0.0), True, 0.1)
    assert (model.config.remat, model.config.dropout_rate) == (True, 0.1)


def test_how_random_parameters_are_drawn_stays():
    alike = tiny.model(**tiny.MESH_SIZES, reading_init=True)
    assert setup.as_trained(alike, None, 0.1).config.reading_init
    assert not setup.as_trained(network(0.0), None, 0.1).config.reading_init
