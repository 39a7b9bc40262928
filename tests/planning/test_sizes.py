"""Sizes by settings alone, against the arrays that the models and learners make."""

import dataclasses
import math

import jax
import optax
import pytest

from nlhf_jax import optimizers
from nlhf_jax.learners.state import StateFactory
from nlhf_jax.models.t5 import T5
from nlhf_jax.planning import sizes
from nlhf_jax.sharding import Partitioner
from tests import tiny
from tests.planning.networks import SMALL, shapes

# 3 divides no dimension of it, 6 all but the vocabulary.
ODD = dataclasses.replace(
    SMALL,
    vocab_size=100,
    emb_dim=48,
    num_heads=6,
    head_dim=8,
    mlp_dim=96,
    logits_via_embedding=True,
    mlp_activations=("relu",),
)
MESHES = [(1, 1, 1), (2, 2, 2), (1, 2, 4), (2, 4, 1), (8, 1, 1)]


def held(tree) -> int:
    """Bytes of the part that one device has."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


@pytest.mark.parametrize("config", [SMALL, ODD], ids=["t5_1_1", "t5_1_0"])
def test_parameters_are_those_of_the_model(config):
    assert sizes.parameters(config) == sum(x.size for x in jax.tree.leaves(shapes(config)))


@pytest.mark.parametrize("axes", MESHES)
@pytest.mark.parametrize("config", [SMALL, ODD], ids=["t5_1_1", "t5_1_0"])
@pytest.mark.parametrize("optimizer", ["adafactor", "adamw"])
def test_a_chip_holds_what_a_device_does(config, axes, optimizer):
    partitioner = tiny.mesh(*axes)
    made = {
        "adafactor": optimizers.adafactor(1e-3, clip_norm=1.0),
        "adamw": optimizers.adamw(1e-3, clip_norm=1.0),
    }[optimizer]
    state = StateFactory(T5(config), made, partitioner, 0, None).abstract()
    mesh = sizes.Mesh(*axes)
    assert sizes.stored_bytes(config, mesh) == held(state.params)
    counted = {"adafactor": sizes.adafactor_bytes, "adamw": sizes.adamw_bytes}[optimizer]
    # Beside the moments there are counters.
    assert counted(config, mesh) == pytest.approx(held(state.opt_state), abs=64)


@pytest.mark.parametrize("config", [SMALL, ODD], ids=["t5_1_1", "t5_1_0"])
def test_a_frozen_network_takes_what_frozen_params_leave(config):
    model = T5(config)
    frozen = jax.eval_shape(lambda p: model.frozen_params(p, "bfloat16"), shapes(config))
    wanted = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(frozen))
    assert sizes.stored_bytes(config, sizes.Mesh(1, 1, 1), "bfloat16") == wanted


def test_a_dimension_that_does_not_divide_stays_whole():
    mesh, partitioner = sizes.Mesh(1, 1, 8), tiny.mesh(1, 1, 8)
    for size in (6, 8, 96, 100):
        where = partitioner.sharding(("mlp",), (size,))
        assert size // mesh.cuts(size, "mlp") == where.shard_shape((size,))[0]


def test_a_rollout_is_cut_by_as_many_chips_as_divide_its_rows():
    mesh = sizes.Mesh(2, 4, 4)
    small, large = 1e9, 1e10
    for layout, rows, wanted in (
        ("replicated", 32, (32, 1, 1)),
        ("replicated", 8, (8, 1, 1)),
        ("tensor", 8, (8, 1, 4)),
        ("tensor", 6, (2, 1, 4)),
        ("spread", 8, (2, 1, 16)),
        ("trained", 8, mesh.axes),
        ("auto", 8, (8, 1, 4)),
    ):
        assert sizes.decoding_mesh(layout, mesh, rows, small).axes == wanted
    without = sizes.Mesh(2, 8, 1)
    assert sizes.decoding_mesh("auto", without, 32, small).axes == (16, 1, 1)
    assert sizes.decoding_mesh("auto", without, 32, large).axes == (2, 1, 8)


def test_an_optimiser_that_is_not_factored_has_whole_moments():
    partitioner: Partitioner = tiny.one_device()
    state = StateFactory(T5(ODD), tiny.optimizer(), partitioner, 0, None).abstract()
    alone = sizes.Mesh(1, 1, 1)
    assert sizes.adafactor_bytes(ODD, alone, 8) == pytest.approx(held(state.opt_state), abs=64)
    plain = StateFactory(T5(ODD), optax.adam(1e-3), partitioner, 0, None).abstract()
    assert sizes.adamw_bytes(ODD, alone) == pytest.approx(held(plain.opt_state), abs=64)
