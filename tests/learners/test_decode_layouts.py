"""Layouts in which responses are decoded: the same responses, with less to say to each other."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax import opponents
from nlhf_jax.errors import UserError
from nlhf_jax.opponents import POLICY
from nlhf_jax.rollout import rollout
from nlhf_jax.sharding import DECODE_LAYOUTS, Partitioner
from tests import tiny

# Every array that has rows in it has a dimension that 7 divides, and no other array has.
LENGTH, ROWS = 12, 56
CUBE, FLAT = (2, 2, 2), (1, 8, 1)
NETWORK = tiny.model(**tiny.MESH_SIZES)
PLAYERS = [POLICY, opponents.geometric_mixture(0.3).weights]


@functools.cache
def _mesh(sizes, layout):
    return Partitioner(*sizes, devices=jax.devices()[: math.prod(sizes)], decode_layout=layout)


def _program(partitioner, rows):
    """A rollout of two networks as a learner has it, and its arguments."""

    def run(sets, inputs):
        with partitioner.activate():
            contexts = {name: NETWORK.encode(params, inputs) for name, params in sets.items()}
            return rollout(NETWORK, PLAYERS, sets, contexts, jax.random.key(0), LENGTH)

    sets = {
        name: tiny.placed(partitioner, NETWORK, tiny.params(NETWORK, seed))
        for name, seed in (("policy", 1), ("reference", 2))
    }
    inputs = {"inputs": tiny.texts(np.random.default_rng(0), rows, 5)}
    whole = rows % partitioner.batch_shares
    place = partitioner.replicate if whole else partitioner.place_batch
    return jax.jit(run), sets, place(inputs)["inputs"]


@functools.cache
def _compiled(sizes, layout, rows=ROWS):
    run, *arguments = _program(_mesh(sizes, layout), rows)
    program = run.lower(*arguments).compile()
    return np.asarray(program(*arguments)), program.as_text()


@pytest.mark.parametrize(
    ("sizes", "layout", "rows"),
    [
        *((CUBE, layout, ROWS) for layout in DECODE_LAYOUTS),
        (FLAT, "spread", ROWS),
        (FLAT, "replicated", ROWS),
        (CUBE, "replicated", 42),  # rows that not all devices can have a share of
    ],
)
def test_layouts_and_meshes_decode_the_same_responses(sizes, layout, rows):
    expected = _compiled((1, 1, 1), "auto", rows)[0]
    assert len(np.unique(expected)) > 4
    np.testing.assert_array_equal(_compiled(sizes, layout, rows)[0], expected)


@pytest.mark.parametrize("sizes", [CUBE, FLAT])
def test_devices_that_have_all_weights_ask_each_other_only_whether_all_have_ended(sizes):
    assert _collectives_per_token(_compiled(sizes, "replicated")[1]) == [("all-reduce", ())]


@pytest.mark.parametrize(
    ("sizes", "layout"), [(CUBE, "tensor"), (CUBE, "spread"), (FLAT, "spread")]
)
def test_cut_weights_stay_where_they_are(sizes, layout):
    shapes = _shapes_exchanged(sizes, layout)
    assert len(shapes) > 2
    assert all(any(size % 7 == 0 for size in shape) for shape in shapes if shape), shapes


def test_weights_that_are_gathered_in_a_loop_are_seen():
    """Or else the tests above would say little."""
    mesh = _mesh(FLAT, "auto")
    cut, whole = (mesh.sharding(axes, (16, 32)) for axes in (("embed", None), (None, None)))

    def step(_, weights):
        gathered = jax.lax.with_sharding_constraint(weights, whole)
        return jax.lax.with_sharding_constraint(jnp.sin(gathered), cut)

    run = jax.jit(lambda weights: jax.lax.fori_loop(0, 3, step, weights), in_shardings=cut)
    text = run.lower(jnp.ones((16, 32))).compile().as_text()
    assert _collectives_per_token(text) == [("all-gather", (16, 32))]


def _shapes_exchanged(sizes, layout):
    return {shape for _, shape in _collectives_per_token(_compiled(sizes, layout)[1])}


def test_a_device_of_its_own_has_one_layout():
    mesh = _mesh((1, 1, 1), "spread")
    assert mesh.decoding(rows=3, weights=10**12) is mesh


def test_a_layout_that_does_not_exist_is_an_error():
    with pytest.raises(UserError, match="DECODE_LAYOUT is 'whole' but must be one of auto, repl"):
        _mesh(CUBE, "whole")


def _collectives_per_token(text):
    """(kind, shape) of every array that devices exchange in the loops of a compiled program."""
    computations, name = {}, None
    for line in text.splitlines():
        if opened := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            name = opened[1]
            computations[name] = []
        elif name:
            computations[name].append(line)
    found, seen = [], set()

    def visit(name):
        if name in seen:
            return
        seen.add(name)
        for line in computations[name]:
            kind = re.search(r" = (.*) (all-[a-z-]+|reduce-scatter|collective-[a-z-]+)\(", line)
            if kind and not kind[2].endswith("-done"):
                shapes = re.findall(r"\w\[([\d,]*)\]", kind[1])
                found.extend((kind[2], tuple(map(int, x.split(","))) if x else ()) for x in shapes)
            for callee in re.findall(r"(?:body|condition|calls|to_apply)=%?([\w.-]+)", line):
                visit(callee)

    loops = [line for lines in computations.values() for line in lines if " while(" in line]
    for part in re.findall(r"(?:body|condition)=%?([\w.-]+)", "\n".join(loops)):
        visit(part)
    return sorted(found)
