"""Any checkpoint, whoever wrote it: finds out the format and opens it."""

import dataclasses

from etils import epath

from nlhf_jax.checkpoints import ours
from nlhf_jax.checkpoints.arrays import read_all
from nlhf_jax.checkpoints.interop import huggingface, t5x
from nlhf_jax.checkpoints.stored import StoredCheckpoint
from nlhf_jax.errors import UserError, unreadable_is_one_error
from nlhf_jax.files import absolute


def open_checkpoint(source: str) -> StoredCheckpoint:
    """Opens a checkpoint; its arrays are read when they are placed.

    Args:
      source: a path, local or a bucket's (`gs://...`): of ours a stage's directory or one step's;
        T5X's `checkpoint_STEP` or the directory around it (native or Orbax); Hugging Face's
        directory. Of ours also `DIR#best`, the best step by the run's metric instead of the latest,
        and `DIR#NAME`, a parameter set that an opponent keeps, such as Nash-EMA's `DIR#average`.

    Raises:
      UserError: there is no checkpoint, or it is damaged.
    """
    path, _, which = str(source).partition("#")
    with unreadable_is_one_error(path, "the checkpoint"):
        return _open(path, which)


def _open(path: str, which: str) -> StoredCheckpoint:
    directory = epath.Path(path)
    if directory.is_dir():
        directory = absolute(directory)
        for known in (huggingface, t5x):
            found = known.find(directory)
            if found is not None:
                if which:
                    raise UserError(f"{path}: only checkpoints of nlhf can have #{which}")
                return known.read(found)
    return ours.read(path, best=True) if which == "best" else ours.read(path, which or "params")


def load(source: str) -> StoredCheckpoint:
    """`open_checkpoint`, with the parameters read into NumPy arrays; for looking at them."""
    found = open_checkpoint(source)
    return dataclasses.replace(found, params=read_all(found.params))
