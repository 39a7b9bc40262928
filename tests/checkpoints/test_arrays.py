"""Arrays on disk: a device reads its own part, once; what is missing or cut is named."""

import itertools

import jax
import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts

from nlhf_jax.checkpoints.arrays import (
    InMemory,
    Part,
    Stacked,
    StoredArray,
    Transposed,
    check_fits,
    flattened,
    nested,
    place,
    read_all,
    read_to_host,
)
from nlhf_jax.checkpoints.networks import read_params
from nlhf_jax.checkpoints.opening import open_checkpoint
from nlhf_jax.checkpoints.zarr import Zarr, kvstore, open_zarr
from nlhf_jax.errors import UserError
from tests import tiny
from tests.checkpoints.interop import tiny_checkpoints

MESH = (2, 2, 2)


class Watched(StoredArray):
    """An array that keeps which of its parts were read."""

    def __init__(self, array: np.ndarray, name: str = "watched"):
        self.name, self.array, self.reads = name, array, []

    @property
    def shape(self):
        return self.array.shape

    @property
    def dtype(self):
        return self.array.dtype

    def read(self, index):
        sizes = zip(index, self.shape, strict=True)
        self.reads.append(tuple(s.indices(size)[:2] for s, size in sizes))
        return self.array[index]


def numbers(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def indices(shape: tuple[int, ...]):
    """Slices of each dimension: all of it, and its first and second half."""
    halves = [(slice(None), slice(0, size // 2), slice(size // 2, size)) for size in shape]
    return itertools.product(*halves)


# --- views ---------------------------------------------------------------------------------------


def assert_reads_like(view: StoredArray, array: np.ndarray) -> None:
    assert view.shape == array.shape and view.dtype == array.dtype
    np.testing.assert_array_equal(view.read_all(), array)
    for index in indices(array.shape):
        np.testing.assert_array_equal(view.read(index), array[index])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_part_is_the_array_at_a_position(axis):
    array = numbers(4, 6, 2)
    for position in range(array.shape[axis]):
        wanted = np.take(array, position, axis)
        assert_reads_like(Part(InMemory("w", array), axis, position), wanted)


def test_a_part_is_named_by_its_position():
    array = InMemory("encoder/layers/mlp/wi", numbers(3, 2))
    assert array[2].name == "encoder/layers/mlp/wi[2]"


def test_stacked_arrays_are_one_with_a_new_first_dimension():
    parts = [numbers(4, 6) + i for i in range(4)]
    stored = Stacked([InMemory(str(i), part) for i, part in enumerate(parts)])
    assert_reads_like(stored, np.stack(parts))


def test_a_transposed_matrix_is_read_the_other_way_round():
    assert_reads_like(Transposed(InMemory("w", numbers(4, 6))), numbers(4, 6).T)


def test_views_of_views_read_from_the_first_array_only_what_is_asked_for():
    array = Watched(numbers(3, 4, 6))
    matrix = Transposed(Stacked([array[0], array[2]])[1])
    np.testing.assert_array_equal(matrix.read((slice(3, 6), slice(0, 2))), array.array[2, :2, 3:].T)
    assert array.reads == [((2, 3), (0, 2), (3, 6))]


def test_nested_and_flattened_are_inverses():
    flat = {"a/b/c": 1, "a/d": 2, "e": 3}
    assert nested(flat) == {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
    assert flattened(nested(flat)) == flat


# --- placing -------------------------------------------------------------------------------------


def sharding(axes, shape):
    return tiny.mesh(*MESH).sharding(axes, shape)


def test_a_device_reads_its_part_alone_and_replicas_read_it_once():
    array = Watched(numbers(8, 12))
    placed = place({"w": array}, {"w": sharding(("embed", "mlp"), (8, 12))})["w"]
    np.testing.assert_array_equal(placed, array.array)
    assert tiny.part(placed) == (4, 6)
    # Cut in two by fsdp and in two by tensor; the two replicas along data share what is read.
    assert sorted(array.reads) == list(itertools.product([(0, 4), (4, 8)], [(0, 6), (6, 12)]))


def test_what_is_not_cut_is_read_once_for_all_devices():
    array = Watched(numbers(5))
    place({"w": array}, {"w": sharding((None,), (5,))})
    assert array.reads == [((0, 5),)]


def test_a_stack_of_layers_reads_of_each_layer_the_devices_part():
    layers = [Watched(numbers(8, 12) + i) for i in range(3)]
    placed = place({"w": Stacked(layers)}, {"w": sharding(("layers", "embed", "mlp"), (3, 8, 12))})[
        "w"
    ]
    np.testing.assert_array_equal(placed, np.stack([layer.array for layer in layers]))
    parts = list(itertools.product([(0, 4), (4, 8)], [(0, 6), (6, 12)]))
    assert [sorted(layer.reads) for layer in layers] == [parts] * 3


@pytest.mark.parametrize("stored_scanned", [False, True])
@pytest.mark.parametrize("scanned", [False, True])
def test_a_networks_parameters_are_read_once_whichever_layout_they_have(
    tmp_path, monkeypatch, stored_scanned, scanned
):
    sizes = {"emb_dim": 16, "heads": 4}
    writer = tiny_checkpoints.model(**sizes, scan_layers=stored_scanned)
    reader = tiny_checkpoints.model(**sizes, scan_layers=scanned)
    tiny_checkpoints.write_ours(tmp_path, writer, tiny.params(writer, 1))
    found = open_checkpoint(str(tmp_path))
    reads = []
    read = Zarr.read

    def watched(self, index):
        part = read(self, index)
        reads.append((self.name, part.size))
        return part

    monkeypatch.setattr(Zarr, "read", watched)
    params = read_params(found, reader, tiny.mesh(*MESH), "float32")
    wanted = tiny.params(reader, 1)
    tiny_checkpoints.assert_equal(
        jax.device_get(flattened(params)), {k: np.asarray(v) for k, v in flattened(wanted).items()}
    )
    # Every number once, and never more at a time than one device holds of the array.
    assert sum(size for _, size in reads) == sum(x.size for x in jax.tree.leaves(wanted))
    largest = max(np.prod(tiny.part(x)) for x in jax.tree.leaves(params))
    assert max(size for _, size in reads) <= largest


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", None])
@pytest.mark.parametrize("stored", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_parameters_are_cast_while_they_are_read(dtype, stored):
    # Halfway between two bfloat16 in every row: rounding is to the nearest even.
    array = (1 + numbers(8, 4) / 256).astype(stored)
    wanted = array if dtype is None else array.astype(dtype)
    tree = {"w": InMemory("w", array)}
    where = {"w": sharding(("embed", None), (8, 4))}
    met = place(tree, where, dtype)["w"]
    assert met.dtype == wanted.dtype
    np.testing.assert_array_equal(np.asarray(met), wanted)


@pytest.mark.parametrize("stored", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_read_all_keeps_what_is_stored(stored):
    array = (1 + numbers(8, 4) / 256).astype(stored)
    met = read_all({"w": InMemory("w", array)})["w"]
    assert met.dtype == array.dtype
    np.testing.assert_array_equal(met, array)


def test_read_to_host_gives_jax_arrays_on_one_cpu():
    met = read_to_host({"w": InMemory("w", numbers(2, 3))}, "bfloat16")["w"]
    assert met.dtype == "bfloat16" and [d.platform for d in met.devices()] == ["cpu"]
    np.testing.assert_array_equal(met.astype(np.float32), numbers(2, 3))


def test_the_first_error_of_reading_is_the_error_of_placing():
    class Broken(Watched):
        def read(self, index):
            raise UserError("the parameter w cannot be read")

    tree = {"v": Watched(numbers(4)), "w": Broken(numbers(4))}
    where = jax.tree.map(lambda _: sharding((None,), (4,)), tree)
    with pytest.raises(UserError, match="the parameter w cannot be read"):
        place(tree, where)


# --- Zarr ----------------------------------------------------------------------------------------


def write_zarr(directory, array, chunks, driver="zarr", separator=None) -> None:
    metadata = {"shape": list(array.shape)}
    if driver == "zarr":
        metadata |= {"chunks": list(chunks), "compressor": {"id": "zstd", "level": 1}}
        metadata |= {"dimension_separator": separator} if separator else {}
    else:
        metadata["chunk_grid"] = {"name": "regular", "configuration": {"chunk_shape": chunks}}
    store = {"driver": "file", "path": f"{directory}/"}
    spec = {"driver": driver, "kvstore": store, "metadata": metadata, "dtype": array.dtype.name}
    ts.open(spec, create=True).result().write(array).result()


def open_one(directory) -> Zarr:
    return open_zarr(kvstore(str(directory)), {"a/b": "target.a.b"}, "CKPT")["a/b"]


@pytest.mark.parametrize(("driver", "separator"), [("zarr", "."), ("zarr", "/"), ("zarr3", None)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_zarr_arrays_of_both_versions_are_read_by_parts(tmp_path, driver, separator, dtype):
    array = numbers(4, 6).astype(dtype)
    write_zarr(tmp_path / "target.a.b", array, [2, 3], driver, separator)
    assert_reads_like(open_one(tmp_path), array)


def test_a_zarr_array_without_dimensions_is_one_number(tmp_path):
    write_zarr(tmp_path / "target.a.b", np.asarray(7.0, np.float32), [])
    assert open_one(tmp_path).read_all() == 7.0


def _cut(path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda array: (array / "1.0").unlink(), "target.a.b/1.0 is missing"),
        (lambda array: (array / ".zarray").unlink(), "target.a.b/.zarray is missing"),
        (lambda array: _cut(array / ".zarray"), ""),
        (lambda array: _cut(array / "1.0"), ""),
        (lambda array: (array / "1.0").write_bytes(b""), ""),
    ],
    ids=["missing chunk", "missing .zarray", "cut .zarray", "cut chunk", "empty chunk"],
)
def test_a_damaged_zarr_array_is_named_and_no_chunk_is_taken_for_zeros(tmp_path, damage, said):
    write_zarr(tmp_path / "target.a.b", numbers(4, 6) + 1, [2, 3])
    damage(tmp_path / "target.a.b")
    with pytest.raises(UserError) as error:
        open_one(tmp_path).read_all()
    message = str(error.value)
    assert message.startswith("the checkpoint CKPT is damaged: the parameter a/b cannot be read (")
    assert said in message and "\n" not in message


def test_what_is_whole_of_a_damaged_array_can_be_read(tmp_path):
    write_zarr(tmp_path / "target.a.b", numbers(4, 6), [2, 3])
    _cut(tmp_path / "target.a.b" / "1.0")
    np.testing.assert_array_equal(
        open_one(tmp_path).read((slice(0, 2), slice(None))), numbers(4, 6)[:2]
    )


@pytest.mark.parametrize(
    ("directory", "wanted"),
    [
        ("/a/b", {"driver": "file", "path": "/a/b/"}),
        ("gs://bucket/a/b", {"driver": "gcs", "bucket": "bucket", "path": "a/b/"}),
        ("s3://bucket/a", {"driver": "s3", "bucket": "bucket", "path": "a/"}),
    ],
)
def test_directories_and_buckets_for_tensorstore(directory, wanted):
    assert kvstore(directory) == wanted


# --- what fits a model ---------------------------------------------------------------------------

WANTED = nested({"a/kernel": numbers(4, 6), "b/scale": numbers(4), "c/scale": numbers(4)})


def stored(**changes):
    """`WANTED` in a checkpoint, with changes: name -> array, or None for none."""
    flat = flattened(WANTED) | {name.replace("__", "/"): array for name, array in changes.items()}
    kept = {name: array for name, array in flat.items() if array is not None}
    return nested({name: InMemory(name, array) for name, array in kept.items()})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_parameters_of_every_kind_of_float_fit(dtype):
    check_fits("CKPT", stored(a__kernel=numbers(4, 6).astype(dtype)), WANTED)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"b__scale": None}, "the parameter b/scale (4,) is missing there"),
        ({"d__scale": numbers(3)}, "the parameter d/scale (3,) is not of this model"),
        (
            {"a__kernel": numbers(6, 4)},
            "the parameter a/kernel has shape (6, 4) there and (4, 6) here",
        ),
        (
            {"a__kernel": numbers(4, 6).astype(np.int8)},
            "the parameter a/kernel is of type int8 but parameters are float32, bfloat16 or "
            "float16",
        ),
        (
            {"b__scale": None, "c__scale": numbers(5), "d": numbers(1)},
            "the parameter b/scale (4,) is missing there (and 2 more differ)",
        ),
    ],
)
def test_the_first_parameter_that_does_not_fit_is_named(changes, said):
    with pytest.raises(UserError) as error:
        check_fits("CKPT", stored(**changes), WANTED)
    assert str(error.value) == f"the checkpoint CKPT does not fit the model: {said}"


def test_a_layer_that_is_missing_is_named():
    wanted = tiny.params(tiny_checkpoints.model(), 1)
    flat = {
        name: InMemory(name, array)
        for name, array in flattened(wanted).items()
        if not name.startswith("decoder/layers_1/")
    }
    # Three norms, four matrices of each of two attentions, three of the MLP.
    with pytest.raises(UserError, match=r"decoder/layers_1/.* is missing there \(and 13 more"):
        check_fits("CKPT", nested(flat), wanted)
