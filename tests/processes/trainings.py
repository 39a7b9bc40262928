"""The same small trainings on any mesh of any processes.

Also a program, which `launch/local.py` starts in several: `python -m tests.processes.trainings
train FILE.npz DATA FSDP TENSOR KIND...` leaves, of the first process, what the trainings came to.
"""

import sys
from collections.abc import Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils

from nlhf_jax import processes
from nlhf_jax.data.batches import Examples
from nlhf_jax.models.t5 import unstack_layers
from nlhf_jax.sharding import Partitioner
from tests import tiny

STEPS = 20


def trained(kind: str, partitioner: Partitioner, microbatches=1, layers=1, scan_layers=False):
    """Metrics of every step, and the state after the last.

    With Adafactor, which divides a gradient by means over rows and columns. (Adam divides each
    element by itself, and where a gradient is 0 but for rounding, blows the rounding up.)
    """
    network = tiny.model(**tiny.MESH_SIZES | {"layers": layers}, scan_layers=scan_layers)
    learner = tiny.learner(kind, network, partitioner=partitioner, microbatches=microbatches)
    state, history = learner.init(), []
    for step in range(STEPS):
        state, metrics = learner.train_step(state, partitioner.place_batch(tiny.batch(kind, step)))
        history.append(jax.device_get(metrics))
    return history, state


def flat(run) -> dict[str, np.ndarray]:
    """What a training came to, as named arrays on the host: of all metrics `[STEPS]`."""
    history, state = run
    found = {f"metrics/{name}": np.array([row[name] for row in history]) for name in history[0]}
    for part, params in ({"params": state.params} | state.kept).items():
        if params is not None:
            whole = jax.tree.map(np.asarray, multihost_utils.process_allgather(params, tiled=True))
            leaves, _ = jax.tree_util.tree_flatten_with_path(unstack_layers(whole))
            found |= {part + jax.tree_util.keystr(path): leaf for path, leaf in leaves}
    return found


def rows_of_an_epoch(partitioner: Partitioner, rows: int = 24, batch_size: int = 8) -> np.ndarray:
    """The numbers of the examples that the devices of each process hold, `[processes, rows]`."""
    numbers = np.arange(rows, dtype=np.int32)[:, None]
    examples, own = Examples({"inputs": numbers}, {}, {}), []
    for step in range(rows // batch_size):
        batch = partitioner.place_batch(examples.batch(step, batch_size, seed=0))
        parts = batch["inputs"].addressable_shards
        own += [part.data for part in parts if part.replica_id == 0]
    return multihost_utils.process_allgather(np.concatenate(own)[:, 0])


def main(path: str, mesh: Iterable[str], kinds: Iterable[str]) -> None:
    jax.config.update("jax_threefry_partitionable", True)
    processes.initialize()
    partitioner = Partitioner(*map(int, mesh))
    found = {
        f"{kind}:{name}": value
        for kind in kinds
        for name, value in flat(trained(kind, partitioner)).items()
    }
    rows = rows_of_an_epoch(partitioner)
    if processes.is_first():
        np.savez(path, rows=rows, **found)


if __name__ == "__main__":
    main(sys.argv[2], sys.argv[3:6], sys.argv[6:])
