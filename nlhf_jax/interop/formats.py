"""Any checkpoint, whoever wrote it: finds out the format and opens it."""

from etils import epath

from nlhf_jax import checkpoints
from nlhf_jax.errors import UserError, unreadable_is_one_error
from nlhf_jax.interop import huggingface, t5x
from nlhf_jax.interop.stored_checkpoint import StoredCheckpoint

# What may follow a `#`: which parameters, and whether the best step's in place of the latest.
_WHICH = {"": ("params", False), "average": ("average", False), "best": ("params", True)}


def open_checkpoint(source: str) -> StoredCheckpoint:
    """Opens a checkpoint; its arrays are read when they are placed.

    Args:
      source: a path, local or a bucket's (`gs://...`): of ours a stage's directory or one step's;
        T5X's `checkpoint_STEP` or the directory around it (native or Orbax); Hugging Face's
        directory. Of ours also `DIR#best`, the best step by the run's metric instead of the latest,
        and `DIR#average`, Nash-EMA's averaged parameters.

    Raises:
      UserError: there is no checkpoint, or it is damaged.
    """
    path, _, which = str(source).partition("#")
    if which not in _WHICH:
        raise UserError(f"the checkpoint {source} ends in #{which} but may in #average or #best")
    with unreadable_is_one_error(path, "the checkpoint"):
        return _open(path, which)


def _open(path: str, which: str) -> StoredCheckpoint:
    directory = epath.Path(path)
    if directory.is_dir():
        directory = directory.resolve() if "://" not in path else directory
        for known in (huggingface, t5x):
            found = known.find(directory)
            if found is not None:
                if which:
                    raise UserError(f"{path}: only checkpoints of nlhf can have #{which}")
                return known.read(found)
    what, best = _WHICH[which]
    ours = checkpoints.open_checkpoint(path, what=what, best=best)
    return StoredCheckpoint(
        path=ours.path,
        format="nlhf",
        params=ours.params,
        model=ours.description["model"],
        step=ours.step,
        vocabulary_bytes=ours.vocabulary_bytes,
        description=ours.description,
    )
