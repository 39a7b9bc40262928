"""Closed forms of what chips send, against the collectives of programs that XLA cut for a mesh."""

import jax
import pytest

from nlhf_jax.models.t5 import T5
from nlhf_jax.planning import hlo, wire
from nlhf_jax.planning.sizes import Mesh, Sizes, part_sizes
from tests import tiny
from tests.planning.networks import SMALL, shapes, tokens

ROWS, S, T = 8, 40, 24


def sent(axes: tuple[int, int, int]) -> float:
    """Bytes that one device sends in a forward pass."""
    partitioner, model = tiny.mesh(*axes), T5(SMALL)

    def at(tree, names):
        places = partitioner.tree_sharding(names, tree)
        return jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree, places
        )

    def forward(params, inputs, targets):
        with partitioner.activate():
            return model.logits(params, model.encode(params, inputs), targets)

    batch = [at(tokens(ROWS, length), ("batch", None)) for length in (S, T)]
    lowered = jax.jit(forward).lower(at(shapes(SMALL), model.logical_axes()), *batch)
    return hlo.all_collectives(lowered.compile().as_text()).sent


def test_weights_are_gathered_along_fsdp():
    mesh = Mesh(1, 4, 1)
    wanted = sum(
        wire.gathered_weights(used, 1, mesh, 1, 4).least
        for part, (_, used) in part_sizes(SMALL, mesh).items()
        if part != "small"
    )
    assert wanted == pytest.approx(sent((1, 4, 1)), rel=0.05)


def test_what_layers_put_out_is_summed_along_tensor():
    mesh = Mesh(1, 1, 4)
    s = Sizes.of(SMALL, mesh)
    wanted = wire.encoder_sums(s, ROWS, S, mesh) + wire.decoder_sums(s, ROWS, T, mesh)
    assert wanted.least == pytest.approx(sent((1, 1, 4)), rel=0.05)


def test_copies_of_a_network_send_nothing():
    s = Sizes.of(SMALL)
    assert sent((4, 1, 1)) == 0
    assert wire.encoder_sums(s, ROWS, S, Mesh(4, 1, 1)) == wire.NONE
    assert wire.gathered_weights(10, 1, Mesh(4, 1, 1), 3, 4) == wire.NONE


def test_a_gradient_is_scattered_along_fsdp_and_summed_along_data():
    found = wire.gradients(used=400, held=100, arrays=5, mesh=Mesh(2, 4, 1), parts=1)
    assert found.least == 4 * (400 * 3 / 4 + 2 * 100 / 2)


def test_between_slices_goes_what_each_of_them_has_summed():
    """Of the 100 numbers that a chip holds, float32: two of a slice's replicas send half each."""
    found = wire.gradients(used=100, held=100, arrays=5, mesh=Mesh(4, 1, 1, slices=2), parts=1)
    inside = wire.gradients(used=100, held=100, arrays=5, mesh=Mesh(2, 1, 1), parts=1)
    assert (found.least, found.most) == (inside.least, inside.most)
    assert found.between == 2 * 4 * (1 / 2) * 100 / 2
    alone = wire.gradients(used=100, held=100, arrays=5, mesh=Mesh(2, 1, 1, slices=2), parts=1)
    assert (alone.least, alone.between) == (0, 2 * 4 * (1 / 2) * 100)
