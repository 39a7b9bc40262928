"""Arrays live where the rules say."""

import functools
import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from nlhf_jax.errors import UserError
from nlhf_jax.optimizers import adamw
from nlhf_jax.sharding import MESH_AXES, Partitioner, constrain, map_batch, split_batch
from tests import tiny

DATA, CUBE = (8, 1, 1), (2, 2, 2)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_optimiser_state_lives_where_its_parameters_do(scan_layers):
    network = tiny.model(**tiny.MESH_SIZES, scan_layers=scan_layers)
    partitioner = tiny.mesh(*CUBE)
    adam = tiny.learner(
        "supervised", network, partitioner=partitioner, optimizer=adamw(1e-2, clip_norm=None)
    )
    moments = adam.abstract_state().opt_state[0]
    separate = tiny.model(**tiny.MESH_SIZES)
    params = tiny.placed(partitioner, separate, tiny.params(separate, 1))
    for moment in (moments.mu, moments.nu):
        jax.tree.map(_assert_placed_alike, moment, params)

    adafactor = tiny.learner("supervised", network, partitioner=partitioner)
    factors = _find(adafactor.init().opt_state, optax.FactoredState)
    kernel = ("decoder", "layers_1", "mlp", "wi_0", "kernel")  # [embed 16, mlp 32]
    assert {tiny.part(_at(x, kernel)) for x in (factors.v_row, factors.v_col)} == {(8,), (16,)}
    assert tiny.part(_at(factors.v, ("decoder", "decoder_norm", "scale"))) == (8,)
    square = (
        "decoder",
        "layers_1",
        "self_attention",
        "query",
        "kernel",
    )  # [embed 16, joined_kv 16]
    assert _at(factors.v_row, square).sharding.spec == PartitionSpec("fsdp")
    assert _at(factors.v_col, square).sharding.spec == PartitionSpec("tensor")


def test_batches_are_cut_along_data_and_fsdp():
    batch = {"inputs": np.arange(40).reshape(8, 5), "weight": np.ones(8, np.float32)}
    placed = tiny.mesh(*CUBE).place_batch(batch)
    assert tiny.part(placed["inputs"]) == (2, 5) and tiny.part(placed["weight"]) == (2,)
    assert tiny.part(tiny.mesh(*DATA).place_batch(batch)["inputs"]) == (1, 5)
    np.testing.assert_array_equal(placed["inputs"], batch["inputs"])


def test_a_batch_that_devices_cannot_share_is_refused_and_not_given_whole_to_each():
    eight, cube = tiny.mesh(*DATA), tiny.mesh(*CUBE)
    batch = {"inputs": np.ones((100, 5), np.int32)}
    with pytest.raises(ValueError, match="'inputs' has 100 rows, which 8 devices .* up to 104"):
        eight.place_batch(batch)
    assert tiny.part(cube.place_batch(batch)["inputs"]) == (25, 5)
    assert [eight.whole_shares(rows) for rows in (1, 8, 100)] == [8, 8, 104]
    assert eight.replicate(batch)["inputs"].sharding.is_fully_replicated


def test_caches_are_cut_by_batch_and_heads():
    network = tiny.model(**tiny.MESH_SIZES)
    partitioner = tiny.mesh(*CUBE)

    def start(params, inputs):
        with partitioner.activate():
            context = network.encode(params, inputs)
            return network.start_decoding(params, context, streams=2, length=6)

    inputs = partitioner.place_batch({"inputs": np.ones((8, 5), np.int32)})["inputs"]
    params = tiny.placed(partitioner, network, tiny.params(network, 1))
    for layer in jax.jit(start)(params, inputs).layers:
        assert tiny.part(layer["self_keys"]) == tiny.part(layer["self_values"]) == (4, 2, 6, 4)
        assert tiny.part(layer["cross_keys"]) == tiny.part(layer["cross_values"]) == (2, 2, 5, 4)


def test_a_dimension_is_cut_by_its_name_if_the_mesh_divides_it():
    cube = tiny.mesh(*CUBE)
    assert cube.sharding(("embed", "mlp"), (16, 32)).spec == PartitionSpec("fsdp", "tensor")
    assert cube.sharding(("embed", "mlp"), (16, 33)).spec == PartitionSpec("fsdp", None)
    assert cube.sharding(("batch", None), (4, 3)).spec == PartitionSpec(("data", "fsdp"), None)
    assert cube.sharding(("batch", None), (6, 3)).spec == PartitionSpec(None, None)
    assert cube.sharding(("layers", "relpos_buckets"), (2, 32)).spec == PartitionSpec(None, None)


def test_the_mesh_takes_the_devices_that_are_left_for_data():
    mesh = Partitioner(-1, fsdp=2, tensor=2).mesh
    assert dict(mesh.shape) == dict(zip(MESH_AXES, (2, 2, 2), strict=True))
    assert dict(Partitioner(-1, 1, 1).mesh.shape) == dict(zip(MESH_AXES, (8, 1, 1), strict=True))


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, 3, 1), (4, 2, 2)])
def test_a_mesh_of_another_size_than_the_devices_is_an_error(sizes):
    with pytest.raises(UserError, match="but there are 8; change DATA_AXIS"):
        Partitioner(*sizes)


def test_constraints_without_a_mesh_do_nothing():
    array = jnp.ones((3, 5))
    assert constrain(array, "batch", "embed") is array


def _assert_placed_alike(one, other):
    assert one.shape == other.shape
    assert one.sharding.is_equivalent_to(other.sharding, one.ndim)


def _at(tree, path):
    return functools.reduce(lambda branch, name: branch[name], path, tree)


def _find(state, kind):
    leaves = jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, kind))
    (found,) = [x for x in leaves if isinstance(x, kind)]
    return found


# --- the wires of a TPU --------------------------------------------------------------------------

# Prints the chips' places, [x, y, z, slice], along each axis of the mesh from its first chip.
_PLACES = """
import json, sys
import jax
from jax.experimental import topologies
from nlhf_jax.sharding import Partitioner

name, slices, *axes = sys.argv[1:]
several = {"num_slices": int(slices)} if int(slices) > 1 else {}
devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **several).devices
mesh = Partitioner(*map(int, axes), devices=devices).mesh.devices
along = {"data": mesh[:, 0, 0], "fsdp": mesh[0, :, 0], "tensor": mesh[0, 0, :]}
print(json.dumps({
    axis: [[*chip.coords, getattr(chip, "slice_index", 0)] for chip in chips]
    for axis, chips in along.items()
}))
"""


@functools.cache
def places(name: str, slices: int, *axes: int) -> dict[str, list]:
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, which knows how TPUs are wired, is not installed")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    program = [sys.executable, "-c", _PLACES, name, str(slices), *map(str, axes)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("name", "fsdp", "tensor"), [("v5e:4x4", 4, 4), ("v5e:16x16", 64, 4)])
def test_neighbours_on_the_tensor_axis_are_neighbours_in_the_machine(name, fsdp, tensor):
    chips = np.array(places(name, 1, 1, fsdp, tensor)["tensor"])
    assert np.abs(np.diff(chips, axis=0)).sum(axis=1).tolist() == [1] * (tensor - 1)


def test_slices_are_joined_by_the_data_axis_alone():
    found = places("v5e:4x4", 2, -1, 4, 4)
    assert [chip[3] for chip in found["data"]] == [0, 1]
    assert {chip[3] for axis in ("fsdp", "tensor") for chip in found[axis]} == {0}


def test_slices_cannot_share_a_copy_of_the_parameters():
    with pytest.raises(AssertionError, match="DATA_AXIS is 1 but must be a multiple of the 2 slic"):
        places("v5e:4x4", 2, 1, 32, 1)


@pytest.mark.parametrize("parts", [1, 2, 4, 6])
def test_a_batch_in_parts_is_the_batch(parts):
    """Of 16 rows on 2 devices, each part has as many from both; 6 parts and 16 rows have 2."""
    partitioner = tiny.mesh(2, 1, 1)
    rows = {"number": np.arange(16, dtype=np.int32), "text": np.ones((16, 3), np.int32)}
    seen = []

    def of_rows(part):
        seen.append(part["number"].shape[0])
        return {"square": part["number"] ** 2, "sum": part["text"].sum(axis=1)}

    def run(batch):
        with partitioner.activate():
            return map_batch(of_rows, batch, parts)

    found = jax.jit(run)(partitioner.place_batch(rows))
    np.testing.assert_array_equal(found["square"], rows["number"] ** 2)
    np.testing.assert_array_equal(found["sum"], np.full(16, 3))
    assert set(seen) == {{1: 16, 2: 8, 4: 4, 6: 8}[parts]}
    first = split_batch(rows, 2)["number"][0]
    assert (first < 8).sum() == (first >= 8).sum() == 4
