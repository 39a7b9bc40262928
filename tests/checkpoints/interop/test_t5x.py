"""What no golden checkpoint of T5X shows: stacked layers, and Adafactor's state as we write it."""

import flax
import numpy as np
import pytest
from etils import epath

from nlhf_jax.checkpoints.arrays import flattened, read_all
from nlhf_jax.checkpoints.interop import t5x
from nlhf_jax.checkpoints.opening import open_checkpoint
from nlhf_jax.checkpoints.zarr import open_zarr, orbax_store
from nlhf_jax.errors import UserError
from tests import tiny
from tests.checkpoints.interop import tiny_checkpoints
from tests.checkpoints.interop.tiny_checkpoints import (
    T5_1_0,
    assert_equal,
    in_memory,
    per_layer,
    read,
)
from tests.paths import golden_directory

# --- scalable_t5 ---------------------------------------------------------------------------------


def stacked_as_in_scalable_t5(flat: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Layers stacked on dimension 1 in a stack inside the stack, each with the shared bias."""
    result: dict[str, np.ndarray] = {}
    for name, array in flat.items():
        stack, _, rest = name.partition("/")
        layers = [flat.get(name.replace("layers_0", f"layers_{i}")) for i in range(2)]
        if rest.startswith("relpos_bias"):
            result[f"{stack}/{stack}/{rest}"] = np.stack([array] * 2, axis=1)
        elif rest.startswith("layers_0/"):
            inside = rest.removeprefix("layers_0/")
            result[f"{stack}/{stack}/{inside}"] = np.stack(layers, axis=1)
        elif not rest.startswith("layers_"):
            result[name] = array
    return result


def write_native(directory, flat: dict[str, np.ndarray]):
    path = epath.Path(directory) / "checkpoint_7"
    path.mkdir(parents=True)
    t5x.write_native(path, in_memory(flat), 7, "float32")
    return path


@pytest.mark.parametrize("settings", [{}, T5_1_0], ids=["1.1", "1.0"])
def test_stacked_layers_of_scalable_t5_are_read_as_layers(tmp_path, settings):
    network = tiny_checkpoints.model(**settings)
    params = per_layer(tiny.params(network, 1))
    stacked = stacked_as_in_scalable_t5(params)
    assert stacked["decoder/decoder/self_attention/query/kernel"].shape == (12, 2, 16)
    assert stacked["encoder/encoder/pre_mlp_layer_norm/scale"].shape == (12, 2)
    assert stacked["encoder/encoder/relpos_bias/rel_embedding"].shape == (4, 2, 32)
    assert "encoder/encoder_norm/scale" in stacked
    path = write_native(tmp_path, stacked)
    assert_equal(read(path), params)
    assert open_checkpoint(str(path)).model["num_decoder_layers"] == 2


def test_biases_that_differ_between_layers_are_refused(tmp_path):
    params = per_layer(tiny.params(tiny_checkpoints.model(), 1))
    stacked = stacked_as_in_scalable_t5(params)
    stacked["decoder/decoder/relpos_bias/rel_embedding"][:, 1] += 1e-6
    path = write_native(tmp_path, stacked)
    with pytest.raises(UserError) as error:
        open_checkpoint(str(path))
    assert "decoder/decoder/relpos_bias/rel_embedding differs between layers" in str(error.value)


# --- the state of Adafactor ----------------------------------------------------------------------

# Which sides Adafactor's averages run along, T5X's rule: `v_row` the smaller one.
SLOTS = {
    "square/kernel": ((128, 128), {"v_row": (128,), "v_col": (128,), "v": (1,)}),
    "wide/kernel": ((128, 320), {"v_row": (128,), "v_col": (320,), "v": (1,)}),
    "high/kernel": ((320, 192), {"v_row": (192,), "v_col": (320,), "v": (1,)}),
    "narrow/kernel": ((127, 512), {"v_row": (1,), "v_col": (1,), "v": (127, 512)}),
    "norm/scale": ((512,), {"v_row": (1,), "v_col": (1,), "v": (512,)}),
}


def written_slots(directory, to: str) -> dict[str, np.ndarray]:
    """What a checkpoint of the format `to` with the parameters of `SLOTS` has beside them."""
    params = in_memory({name: np.ones(shape, np.float32) for name, (shape, _) in SLOTS.items()})
    path = epath.Path(directory) / "checkpoint_7"
    if to == "t5x":
        path.mkdir()
        t5x.write_native(path, params, 7, "bfloat16")
        content = flax.serialization.msgpack_restore((path / "checkpoint").read_bytes())
        assert content["version"] == 3
        return flattened(content["optimizer"]["state"])
    t5x.write_orbax(epath.Path(directory), params, 7, "bfloat16")
    store = path / "state"
    names = {child.name for child in store.iterdir() if child.name.startswith("state.")}
    slots = {name.removeprefix("state.").replace(".", "/"): name for name in names}
    return flattened(read_all(open_zarr(orbax_store(store), slots, str(path))))


@pytest.mark.parametrize("to", ["t5x", "t5x_orbax"])
def test_adafactors_state_is_fresh_and_of_the_shapes_that_t5x_makes(tmp_path, to):
    slots = written_slots(tmp_path, to)
    step = slots.pop("step")
    assert step == 7 and step.dtype == np.int32 and step.shape == ()
    wanted = {
        f"param_states/{name}/{slot}": shape
        for name, (_, shapes) in SLOTS.items()
        for slot, shape in (shapes | {"m": (1,)}).items()
    }
    assert {name: array.shape for name, array in slots.items()} == wanted
    assert all(array.dtype == np.float32 and not array.any() for array in slots.values())


def test_adafactors_state_has_the_names_that_t5x_writes(tmp_path):
    state = np.load(golden_directory() / "t5x_tiny" / "train_state_flat.npz")
    params = {
        name.removeprefix("target/"): state[name]
        for name in state.files
        if name.startswith("target/")
    }
    path = write_native(tmp_path, params)
    content = flax.serialization.msgpack_restore((path / "checkpoint").read_bytes())
    slots = flattened(content["optimizer"]["state"])
    wanted = {name.removeprefix("state/"): state[name] for name in state.files}
    wanted = {name: x for name, x in wanted.items() if not name.startswith("target/")}
    assert slots.keys() == wanted.keys()
    for name, array in wanted.items():
        assert slots[name].dtype == array.dtype, name
        # Sides of 32 were long enough to be factored there; of what was not, shapes are equal.
        factored = params.get(name.removeprefix("param_states/").rpartition("/")[0], array).shape
        if name.endswith("/m") or len(factored) != 2 or min(factored) < 32:
            assert slots[name].shape == array.shape, name


@pytest.mark.parametrize("to", ["t5x", "t5x_orbax"])
def test_adafactors_state_stays_float32_beside_bfloat16_parameters(tmp_path, to):
    written_slots(tmp_path, to)
    path = epath.Path(tmp_path) / "checkpoint_7"
    root = path if to == "t5x" else path / "state"
    names = {name: f"target.{name.replace('/', '.')}" for name in SLOTS}
    arrays = open_zarr(orbax_store(root), names, str(path))
    assert {array.dtype.name for array in arrays.values()} == {"bfloat16"}


def test_chunks_are_of_bounded_size_and_divide_the_array(tmp_path, monkeypatch):
    monkeypatch.setattr(t5x, "_CHUNK_BYTES", 1 << 10)
    arrays = {"wide": (24, 96), "high": (512, 12), "odd": (3, 160), "small": (4, 8)}
    arrays = {
        name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        for name, shape in arrays.items()
    }
    path = write_native(tmp_path, arrays)
    written = open_zarr(orbax_store(path), {name: f"target.{name}" for name in arrays}, "")
    for name, array in written.items():
        chunk = array.store.chunk_layout.read_chunk.shape
        assert np.prod(chunk) * 4 <= 1 << 10, name
        assert all(size % step == 0 for size, step in zip(array.shape, chunk, strict=True)), name
    assert written["wide"].store.chunk_layout.read_chunk.shape == (12, 12)
    assert_equal(read_all(written), arrays)
