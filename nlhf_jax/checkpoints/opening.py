"""Any checkpoint, whoever wrote it: finds out the format and opens it."""

import dataclasses
import hashlib
import json
import math
from types import ModuleType

import numpy as np
from etils import epath

from nlhf_jax.checkpoints import ours
from nlhf_jax.checkpoints.arrays import flattened, read_all
from nlhf_jax.checkpoints.interop import huggingface, t5x
from nlhf_jax.checkpoints.stored import StoredCheckpoint
from nlhf_jax.errors import UserError, unreadable_is_one_error
from nlhf_jax.files import absolute

_ARRAYS_READ = 16  # by `identity`


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


def resolve(source: str) -> str:
    """What `source` means now: the step's directory, with `#NAME` if it names a parameter set.

    Opening it gives the same checkpoint, also when a later step has been saved. Arguments and
    errors as of `open_checkpoint`.
    """
    path, _, which = str(source).partition("#")
    with unreadable_is_one_error(path, "the checkpoint"):
        found = _find_foreign(path, which)
        directory = found[1] if found else ours.step_directory(epath.Path(path), which == "best")
    name = which if which != "best" else ""
    return f"{directory}#{name}" if name else str(directory)


def identity(source: str) -> str:
    """A hash of what a checkpoint holds, wherever it is; two steps of a training differ in it.

    Of the arrays it reads a few of the smallest, the scales of normalisation: every update changes
    them. Arguments and errors as of `open_checkpoint`.
    """
    found = open_checkpoint(source)
    arrays = flattened(found.params)
    shapes = {name: (array.shape, str(array.dtype)) for name, array in arrays.items()}
    says = found.description or {}
    told = [says.get(name) for name in ("kind", "feature_lengths", "rater_template")]
    vocabulary = hashlib.sha256(found.vocabulary_bytes or b"").hexdigest()
    digest = hashlib.sha256(json.dumps([found.step, told, vocabulary, shapes]).encode())
    smallest = sorted(arrays, key=lambda name: (math.prod(arrays[name].shape), name))
    for name in smallest[:_ARRAYS_READ]:
        digest.update(np.ascontiguousarray(arrays[name].read_all()).tobytes())
    return digest.hexdigest()


def _open(path: str, which: str) -> StoredCheckpoint:
    foreign = _find_foreign(path, which)
    if foreign is not None:
        known, directory = foreign
        return known.read(directory)
    return ours.read(path, best=True) if which == "best" else ours.read(path, which or "params")


def _find_foreign(path: str, which: str) -> tuple[ModuleType, epath.Path] | None:
    """Who reads a checkpoint that is not ours, and the directory of its step."""
    directory = epath.Path(path)
    if directory.is_dir():
        directory = absolute(directory)
        for known in (huggingface, t5x):
            found = known.find(directory)
            if found is not None:
                if which:
                    raise UserError(f"{path}: only checkpoints of nlhf can have #{which}")
                return known, found
    return None


def load(source: str) -> StoredCheckpoint:
    """`open_checkpoint`, with the parameters read into NumPy arrays; for looking at them."""
    found = open_checkpoint(source)
    return dataclasses.replace(found, params=read_all(found.params))
