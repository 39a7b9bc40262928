"""Two processes share a mesh: each reads its own half of a checkpoint, and no more."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests import tiny
from tests.checkpoints.interop.tiny_checkpoints import model, write

REPOSITORY = Path(__file__).resolve().parents[3]

# Counts what is read of the files, and compares its part of each parameter with all of it.
PROGRAM = """
import json
import sys
import threading

import jax
import numpy as np

path, whole, port, process = sys.argv[1:]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", 2, int(process))

from nlhf_jax.checkpoints import arrays, zarr
from nlhf_jax.checkpoints.opening import open_checkpoint
from nlhf_jax.models import registry
from nlhf_jax.checkpoints.networks import read_params
from nlhf_jax.sharding import Partitioner

lock, read, count = threading.Lock(), zarr.Zarr.read, 0

def counted(self, index):
    global count
    part = read(self, index)
    with lock:
        count += part.size
    return part

zarr.Zarr.read = counted
found = open_checkpoint(path)
scanned = registry.build(found.model | {"scan_layers": True})
params = read_params(found, scanned, Partitioner(data=1, fsdp=4, tensor=1), "float32")
whole = np.load(whole)
for name, array in arrays.flattened(params).items():
    assert array.shape == whole[name].shape
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(shard.data, whole[name][shard.index])
parts = sum(
    len({str(s.index) for s in array.addressable_shards}) * array.addressable_shards[0].data.size
    for array in jax.tree.leaves(params)
)
print(json.dumps({"processes": jax.process_count(), "read": count, "parts": parts}))
"""


@pytest.mark.slow
def test_each_process_reads_its_own_part(tmp_path):
    """Also where layers are stored apart and wanted stacked."""
    network = model(emb_dim=16)
    params = jax.device_get(tiny.params(network, 1))
    checkpoint = write(tmp_path, "t5x", network, params)
    scanned = model(emb_dim=16, scan_layers=True).from_per_layer(params, join=np.stack)
    leaves, _ = jax.tree_util.tree_flatten_with_path(scanned)
    named = {jax.tree_util.keystr(key, simple=True, separator="/"): x for key, x in leaves}
    np.savez(tmp_path / "whole.npz", **named)
    total = sum(x.size for x in named.values())

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, checkpoint, tmp_path / "whole.npz", port, str(process)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in (0, 1)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    for process, (output, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
        found = json.loads(output.splitlines()[-1])
        assert found["processes"] == 2
        assert found["read"] == found["parts"]
        # Half of it, and in whole what this mesh does not cut: the position biases.
        assert total / 2 <= found["read"] < 0.6 * total
