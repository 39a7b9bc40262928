"""Rematerialisation: the same gradients in less memory, and nothing else."""

import functools
import math

import jax
import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.jobs import setup
from nlhf_jax.models import registry
from nlhf_jax.models.language_model import LanguageModel
from nlhf_jax.rollout import sample_responses
from tests import tiny

LAYOUTS = pytest.mark.parametrize("scanned", [False, True], ids=["per layer", "scanned"])


def network(remat: bool, scanned: bool, dropout: float = 0.0):
    return tiny.model(
        tiny.RATER_VOCABULARY,
        emb_dim=16,
        heads=4,
        layers=2,
        remat=remat,
        scan_layers=scanned,
        dropout_rate=dropout,
    )


@LAYOUTS
@pytest.mark.parametrize(
    ("kind", "dropout"),
    [
        pytest.param("supervised", 0.0, marks=pytest.mark.long),
        ("supervised", 0.25),
        pytest.param("preference", 0.0, marks=pytest.mark.long),
        ("nash_md", 0.0),
    ],
)
def test_gradients_are_the_same(kind, dropout, scanned):
    """To rounding: XLA fuses the two programs differently."""
    found = []
    for remat in (False, True):
        learner = tiny.learner(kind, network(remat, scanned, dropout))
        state, frozen = learner.init(), learner._frozen
        batch = learner.partitioner.place_batch(tiny.batch(kind, 0))

        @jax.jit
        def gradient(params, state, frozen, batch, learner=learner):
            rows, _ = learner.rows(state, frozen, batch)
            return jax.grad(lambda params: learner.loss(params, frozen, rows)[0])(params)

        found.append(gradient(state.params, state, frozen, batch))
    size = max(float(np.abs(x).max()) for x in jax.tree.leaves(found[0]))
    assert size > 1e-3
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6 * size), *found)


def supervised(remat: bool, scanned: bool):
    """A learner of eight layers, with the shapes of a batch whose activations are most of all."""
    model = tiny.model(
        tiny.RATER_VOCABULARY, emb_dim=16, layers=8, remat=remat, scan_layers=scanned
    )
    tokens = jax.ShapeDtypeStruct((32, 48), np.int32)
    return tiny.learner("supervised", model), {"inputs": tokens, "targets": tokens}


@LAYOUTS
def test_less_is_kept_for_the_gradient(scanned):
    kept = []
    for remat in (False, True):
        learner, batch = supervised(remat, scanned)
        state = learner.abstract_state()

        def backward(params, state, batch, learner=learner):
            rows, _ = learner.rows(state, None, batch)
            return jax.vjp(lambda params: learner.loss(params, None, rows)[0], params)[1]

        residuals = jax.tree.leaves(jax.eval_shape(backward, state.params, state, batch))
        kept.append(sum(math.prod(x.shape) * x.dtype.itemsize for x in residuals))
    assert kept[1] < 0.2 * kept[0], kept


@pytest.mark.long
def test_a_compiled_step_takes_less_memory():
    """Stacked, as large networks are. XLA computes separate layers twice on a GPU or TPU alone."""
    sizes = []
    for remat in (False, True):
        learner, batch = supervised(remat, scanned=True)
        step = learner._jitted_train_step.lower(learner.abstract_state(), None, batch)
        sizes.append(step.compile().memory_analysis().temp_size_in_bytes)
    assert sizes[1] < 0.6 * sizes[0], sizes


def test_sampling_and_what_a_checkpoint_says_know_nothing_of_it():
    with_it, without = network(True, True), network(False, True)
    assert with_it.description() == without.description()
    assert registry.build(with_it.description()).config == without.config
    inputs = tiny.texts(np.random.default_rng(0), 4, 5)
    params = tiny.params(without, 1)
    programs = []
    for model in (with_it, without):
        context = jax.eval_shape(model.encode, params, inputs)
        decode = lambda params, context, model=model: sample_responses(  # noqa: E731
            _Read(model, context), params, inputs, jax.random.key(0), 6
        )
        programs.append(jax.jit(decode).lower(params, context).as_text())
    assert programs[0] == programs[1]


class _Read:
    """A model that has read the prompts already: what is left is decoding."""

    def __init__(self, model, context):
        self._model, self._context = model, context

    def __getattr__(self, name):
        return getattr(self._model, name)

    def encode(self, params, inputs):
        return self._context


def test_a_family_that_cannot_is_refused():
    class Other(LanguageModel):
        def description(self):
            return {"family": "t5", "vocab": 3}

    with pytest.raises(UserError, match="REMAT is True but the model's description does not fit"):
        setup.as_trained(Other(), True)
