"""The safetensors library and ours write and read the same files."""

import shutil

import numpy as np
import pytest

from nlhf_jax.checkpoints.arrays import flattened
from nlhf_jax.checkpoints.interop import huggingface
from tests import tiny
from tests.checkpoints.interop import tiny_checkpoints
from tests.checkpoints.interop.tiny_checkpoints import T5_1_0, assert_equal, per_layer, read, write


@pytest.fixture
def library():
    reason = "the safetensors library, which wrote the format first, is not installed"
    return pytest.importorskip("safetensors.numpy", reason=reason)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_safetensors_library_reads_what_we_write(tmp_path, library, dtype):
    network = tiny_checkpoints.model()
    params = tiny.params(network, 1)
    there = write(tmp_path, "huggingface", network, params, dtype)
    met = library.load_file(there / "model.safetensors")
    wanted = {
        huggingface.their_name(name): (x.T if name.endswith(("kernel", "rel_embedding")) else x)
        for name, x in per_layer(params).items()
    }
    assert_equal(met, {name: x.astype(dtype) for name, x in wanted.items()})


def test_we_read_what_the_safetensors_library_writes(tmp_path, library):
    network = tiny_checkpoints.model()
    params = tiny.params(network, 1)
    there = write(tmp_path, "huggingface", network, params)
    weights = there / "model.safetensors"
    arrays = library.load_file(weights)
    # float16, and in its own order; with a copy of the embedding as older files have it.
    arrays = {name: np.ascontiguousarray(x.astype(np.float16)) for name, x in arrays.items()}
    arrays["encoder.embed_tokens.weight"] = arrays["shared.weight"].copy()
    library.save_file(arrays, weights, metadata={"format": "pt"})
    assert_equal(read(there), {n: x.astype(np.float16) for n, x in per_layer(params).items()})
    shutil.rmtree(there)


def test_every_parameter_is_named_once_in_hugging_faces_file():
    for settings in ({}, T5_1_0):
        names = list(flattened(tiny.params(tiny_checkpoints.model(**settings), 1)))
        theirs = [huggingface.their_name(name) for name in names]
        assert len(set(theirs)) == len(names)
