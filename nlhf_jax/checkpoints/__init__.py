"""Checkpoints: saved, found, opened and brought onto the mesh.

| module | does |
|---|---|
| `saving` | saves and restores a training's state |
| `description` | what a checkpoint says about itself |
| `opening` | opens a checkpoint of any format, ours, T5X's or Hugging Face's, without reading it |
| `networks` | a network from any of them, on the mesh |
| `ours` | what our directories look like |
| `integrity` | whether a checkpoint's files are what was written |
| `failures` | what storage says when it cannot save |
| `arrays`, `zarr` | arrays on disk that are read by slices |
| `interop/` | the formats of others |

In a notebook: `checkpoints.load("out/nash_md").params`.
"""

from nlhf_jax.checkpoints.description import describe
from nlhf_jax.checkpoints.opening import identity, load, open_checkpoint, resolve
from nlhf_jax.checkpoints.ours import DIRECTORY, latest_step, read_description
from nlhf_jax.checkpoints.saving import Checkpoints

__all__ = [
    "DIRECTORY",
    "Checkpoints",
    "describe",
    "identity",
    "latest_step",
    "load",
    "open_checkpoint",
    "read_description",
    "resolve",
]
