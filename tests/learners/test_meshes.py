"""One device and eight, stacked layers and separate ones, give the same training run."""

import functools
import re

import jax
import numpy as np
import pytest

from nlhf_jax.rollout import sample_responses
from tests import tiny
from tests.processes import trainings

COLLECTIVES = r" (all-[a-z]+(?:-[a-z]+)?|reduce-scatter|collective-[a-z]+)\("
ONE, DATA, FLAT, CUBE = (1, 1, 1), (8, 1, 1), (1, 2, 4), (2, 2, 2)
# A step of each kind; the others with -m long.
SOME = ("supervised", "preference", "nash_md")


def _long_but(some, kinds):
    return [pytest.param(kind, marks=() if kind in some else pytest.mark.long) for kind in kinds]


MOST_LONG = _long_but(("supervised", "nash_md"), tiny.LEARNERS)


@functools.cache
def _trained(kind, mesh, microbatches=1, **network):
    return trainings.trained(kind, tiny.mesh(*mesh), microbatches, **network)


def _assert_same_run(run, other):
    assert_same(trainings.flat(run), trainings.flat(other))


def assert_same(run, other):
    """To the rounding of float32 over the steps; training changes a thousand times more."""
    assert run.keys() == other.keys()
    for name, found in run.items():
        tolerance = 1e-4 if name.startswith("metrics/") else 1e-5
        if name == "metrics/gradient_norm":  # On an AMD EPYC 1.13e-4 was seen.
            tolerance = 3e-4
        np.testing.assert_allclose(found, other[name], tolerance, 1e-5, err_msg=name)


@pytest.mark.parametrize("kind", _long_but(SOME, (*tiny.LEARNERS, *tiny.RELATIVES)))
def test_a_mesh_of_all_axes_trains_as_one_device_does(kind):
    _assert_same_run(_trained(kind, CUBE), _trained(kind, ONE))


@pytest.mark.parametrize("mesh", [DATA, FLAT], ids=str)
@pytest.mark.parametrize("kind", MOST_LONG)
def test_a_mesh_of_some_axes_trains_as_one_device_does(kind, mesh):
    """Shares of the batch alone, and of a few rows and every matrix."""
    _assert_same_run(_trained(kind, mesh), _trained(kind, ONE))


@pytest.mark.parametrize("kind", _long_but(("nash_md",), ("preference", "nash_md", "ipo_md")))
def test_eight_shares_of_the_batch_exchange_sums_only(kind):
    """A collective of another kind would mean that rows travel between devices."""
    learner = tiny.learner(kind, tiny.model(**tiny.MESH_SIZES), partitioner=tiny.mesh(*DATA))
    batch = learner.partitioner.place_batch(tiny.batch(kind, 0))
    step = learner._jitted_train_step
    program = step.lower(learner.abstract_state(), learner._frozen, batch).compile().as_text()
    assert set(re.findall(COLLECTIVES, program)) == {"all-reduce"}


# A rater decodes one token, which attends to itself alone: nothing changes its self-attention.
@pytest.mark.parametrize("kind", ["supervised", "nash_md", "ipo_md"])
def test_training_changes_every_array(kind):
    """Or else the tests around this one would say little."""
    start = tiny.params(tiny.model(**tiny.MESH_SIZES | {"layers": 1}), 1)
    change = jax.tree.map(lambda x, y: np.max(np.abs(x - y)), start, _trained(kind, ONE)[1].params)
    assert min(jax.tree.leaves(change)) > 1e-2


@pytest.mark.parametrize("kind", _long_but(("nash_md",), tiny.LEARNERS))
def test_scanned_layers_on_a_mesh_train_as_separate_ones_on_one_device_do(kind):
    """By Adafactor, which scales and clips each array: a stacked one is not its layers."""
    scanned = _trained(kind, CUBE, layers=2, scan_layers=True)
    assert "layers" in scanned[1].params["decoder"]
    _assert_same_run(scanned, _trained(kind, ONE, layers=2))


@pytest.mark.parametrize("kind", ["supervised", "preference", "nash_md", "ipo_md"])
def test_microbatches_train_as_one_batch_does(kind):
    _assert_same_run(_trained(kind, ONE, microbatches=4), _trained(kind, ONE))


def test_all_meshes_sample_the_same_tokens():
    network = tiny.model(**tiny.MESH_SIZES)
    values = tiny.params(network, 1)
    inputs = {"inputs": tiny.texts(np.random.default_rng(0), 8, 5)}
    found = []
    for mesh in (ONE, DATA, CUBE):
        partitioner = tiny.mesh(*mesh)

        def run(params, inputs, partitioner=partitioner):
            with partitioner.activate():
                return sample_responses(network, params, inputs, jax.random.key(0), 16)

        placed = tiny.placed(partitioner, network, values)
        found.append(np.asarray(jax.jit(run)(placed, partitioner.place_batch(inputs)["inputs"])))
    assert len(np.unique(found[0])) > 4
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_parameters_are_cut_before_and_after_training():
    network = tiny.model(**tiny.MESH_SIZES)
    fresh = tiny.learner("nash_ema", network, partitioner=tiny.mesh(*CUBE)).init()
    trained = _trained("nash_ema", CUBE)[1]
    for state in (fresh, trained):
        for params in (state.params, state.kept["average"]):
            mlp = params["decoder"]["layers_0"]["mlp"]
            assert tiny.part(mlp["wi_0"]["kernel"]) == (8, 16)  # [embed 16, mlp 32]
            assert tiny.part(mlp["wo"]["kernel"]) == (16, 8)
            assert tiny.part(params["decoder"]["logits_dense"]["kernel"]) == (
                8,
                6,
            )  # [16, vocab 12]
            assert tiny.part(params["token_embedder"]["embedding"]) == (6, 8)
            assert tiny.part(params["encoder"]["relpos_bias"]["rel_embedding"]) == (2, 32)
            whole = [x for x in jax.tree.leaves(params) if tiny.part(x) == x.shape]
            assert not whole
