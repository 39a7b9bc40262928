"""Responses of one checkpoint: on all devices, in the checkpoint's own dtype."""

import jax
import numpy as np
import pytest

from nlhf_jax.jobs import sampling
from tests import tiny
from tests.checkpoints.interop import tiny_checkpoints
from tests.checkpoints.interop.tiny_checkpoints import write_ours

PROMPTS = ["my boss steals food", "my cousin tells lies", "my boss"]


def checkpoint(directory, dtype: str) -> str:
    network = tiny_checkpoints.model(emb_dim=16, dtype=dtype)
    return str(write_ours(directory / dtype, network, tiny.params(network, 1)))


def test_many_devices_write_what_one_does(tmp_path):
    """Batches of 5 rows, of which the last one is not whole, on 8 devices."""
    path, found = checkpoint(tmp_path, "float32"), []
    for devices in (jax.devices()[:1], jax.devices()):
        found.append(sampling.sample(path, PROMPTS, 4, 1.0, 3, batch_size=5, devices=devices))
    assert [len(texts) for texts in found[0]] == [4, 4, 4]
    assert len({text for texts in found[0] for text in texts}) > 6
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_devices_share_parameters_in_the_dtype_of_activations(tmp_path, monkeypatch, dtype):
    loaded, load = [], sampling.load_network

    def look(*arguments, **settings):
        loaded.append(load(*arguments, **settings))
        return loaded[-1]

    monkeypatch.setattr(sampling, "load_network", look)
    sampling.sample(checkpoint(tmp_path, dtype), PROMPTS, 1, 1.0, 0)
    wi = loaded[0].params["encoder"]["layers_0"]["mlp"]["wi_0"]["kernel"]
    assert wi.dtype == dtype
    assert len(wi.sharding.device_set) == 8 and tiny.part(wi) == (2, 32)
    norm = loaded[0].params["encoder"]["encoder_norm"]["scale"]
    assert norm.dtype == np.float32  # computed with in float32
