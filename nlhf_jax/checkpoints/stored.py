"""What a checkpoint of any format is turned into."""

import dataclasses
from typing import Any

from nlhf_jax.checkpoints.arrays import PyTree


@dataclasses.dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint whose arrays are not read yet.

    Attributes:
      path: of its directory.
      format: its name, for messages.
      params: nested dict of `arrays.StoredArray` with our names; foreign ones have an array
        for each layer.
      model: settings from which `models.registry` builds the model.
      step: training steps taken, 0 if not known.
      vocabulary_bytes: a SentencePiece model if one is there.
      description: what one of ours says about itself (`checkpoints.describe`), else None.
    """

    path: str
    format: str
    params: PyTree
    model: dict[str, Any]
    step: int = 0
    vocabulary_bytes: bytes | None = None
    description: dict[str, Any] | None = None
