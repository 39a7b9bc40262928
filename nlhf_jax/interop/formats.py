"""Any checkpoint, whoever wrote it: finds out the format and opens it."""

from etils import epath

from nlhf_jax import checkpoints
from nlhf_jax.errors import UserError
from nlhf_jax.interop import huggingface, t5x
from nlhf_jax.interop.stored_checkpoint import StoredCheckpoint


def open_checkpoint(path: str, what: str = "params") -> StoredCheckpoint:
    """Opens a checkpoint; its arrays are read when they are placed.

    Args:
      path: local or a bucket's (`gs://...`): of ours a stage's directory or one step's; T5X's
        `checkpoint_STEP` or the directory around it (native or Orbax); Hugging Face's directory.
      what: "params", or "average", which only ours can have.

    Raises:
      UserError: there is no checkpoint, or it is damaged.
    """
    directory = epath.Path(path)
    if directory.is_dir():
        directory = directory.resolve() if "://" not in str(path) else directory
        for known in (huggingface, t5x):
            found = known.find(directory)
            if found is not None:
                if what != "params":
                    raise UserError(f"the checkpoint {path} has no {what!r}: it is not nlhf's own")
                return known.read(found)
    ours = checkpoints.open_checkpoint(path, what=what)
    return StoredCheckpoint(
        path=ours.path,
        format="nlhf",
        params=ours.params,
        model=ours.description["model"],
        step=ours.step,
        vocabulary_bytes=ours.vocabulary_bytes,
        description=ours.description,
    )
