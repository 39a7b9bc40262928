"""Networks from checkpoints of any format, on the mesh."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath

from nlhf_jax import raters
from nlhf_jax.checkpoints.arrays import Stacked, check_fits, flattened, place
from nlhf_jax.checkpoints.description import check_same_vocabulary, describe
from nlhf_jax.checkpoints.opening import open_checkpoint
from nlhf_jax.checkpoints.ours import DIRECTORY
from nlhf_jax.checkpoints.stored import StoredCheckpoint
from nlhf_jax.data.datasets import Dataset
from nlhf_jax.data.prompts import PLAIN, PromptForm
from nlhf_jax.data.templates import RaterTemplate, RewardTemplate
from nlhf_jax.data.vocabularies import Vocabulary
from nlhf_jax.errors import UserError, warn
from nlhf_jax.models import registry
from nlhf_jax.models.language_model import LanguageModel, PyTree
from nlhf_jax.raters import Rater
from nlhf_jax.sharding import Partitioner


@dataclasses.dataclass(frozen=True)
class Network:
    """A frozen network from a checkpoint, on the mesh, with what the checkpoint says of itself.

    Attributes:
      model: the architecture.
      read: from a dtype to the parameters in it (see `read_params`), read each time anew.
      dtype: in which `params` are stored.
      description: as of `checkpoints.describe`.
      vocabulary_bytes: its SentencePiece model.
      stored: the checkpoint.
    """

    model: LanguageModel
    read: Callable[[str], PyTree]
    dtype: str
    description: dict[str, Any]
    vocabulary_bytes: bytes
    stored: StoredCheckpoint

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """Where it was read, `path`, and a hash of some of its numbers, wherever that is now."""
        arrays = flattened(self.stored.params)
        # Scales and biases: small, and in no two trainings the same.
        few = [name for name in sorted(arrays) if len(arrays[name].shape) == 1][:8]
        numbers = b"".join(arrays[name].read_all().tobytes() for name in few)
        return {"path": self.stored.path, "sha256": hashlib.sha256(numbers).hexdigest()}

    def is_rater_of(self, policy: "Network") -> bool | None:
        """Whether `policy` was trained against this network, or another step of its training.

        None if the policy's checkpoint does not say.
        """
        if policy.kind != "policy":
            return False
        trained = policy.description.get("trained_against")
        if not trained:
            return None if trained is None else False
        # With several raters the others stand beside the first.
        return any(self._is(one) for one in (trained, *trained.get("others", ())))

    def _is(self, other: Mapping[str, str]) -> bool:
        here, there = (epath.Path(one["path"]).parent for one in (self.identity, other))
        same_training = here == there and here.name == DIRECTORY
        return same_training or self.identity["sha256"] == other["sha256"]

    @functools.cached_property
    def params(self) -> PyTree:
        """Read when first asked for."""
        return self.read(self.dtype)

    @property
    def kind(self) -> str:
        return self.description["kind"]

    @property
    def feature_lengths(self) -> dict[str, int]:
        return self.description["feature_lengths"]

    @property
    def prompt_form(self) -> PromptForm:
        form = self.description.get("prompt_form")
        return PLAIN if form is None else PromptForm(form)

    def rater(self) -> Rater:
        """What a network of one of `raters.KINDS` is, beside its parameters."""
        said = self.description
        settings = dict(said.get("rater_settings") or {})
        for name in ("template", "labels"):
            if said.get(f"rater_{name}") is not None:
                settings[name] = said[f"rater_{name}"]
        return raters.from_description(self.kind, self.model, settings)


def load_network(
    path: str, partitioner: Partitioner, data: Dataset | None = None, **settings: Any
) -> Network:
    """`open_network`, with the parameters read straight onto the mesh."""
    network = open_network(path, partitioner, data, **settings)
    _ = network.params
    return network


def open_network(
    path: str,
    partitioner: Partitioner,
    data: Dataset | None = None,
    dtype: str | None = "float32",
    kind: str = "policy",
    compute_dtype: str | None = None,
    scan_layers: bool | None = None,
    feature_lengths: Mapping[str, int] | None = None,
) -> Network:
    """Opens a checkpoint of any format; its parameters are read when they are asked for.

    Args:
      path: as in `checkpoints.open_checkpoint`.
      partitioner: the mesh.
      data: its vocabulary must be the checkpoint's; says what a foreign checkpoint does not.
      dtype: in which to store the parameters; None for that of activations.
      kind: what to take a foreign checkpoint for: "policy", "preference" or "reward".
      compute_dtype: of activations; None for that of the checkpoint's run, float32 if foreign.
      scan_layers: layout of the parameters; None for that of the checkpoint's run, an array for
        each layer if foreign.
      feature_lengths: of a foreign checkpoint's texts, see `checkpoints.describe`.

    Raises:
      UserError: the checkpoint cannot be read, or does not fit the model or the data.
    """
    found = open_checkpoint(path)
    changes = {"dtype": compute_dtype, "scan_layers": scan_layers}
    changes = {name: value for name, value in changes.items() if value is not None}
    model = registry.build(found.model | changes)
    description = found.description or _describe(found, model, data, kind, feature_lengths or {})
    if data is not None:
        check_vocabulary(found, data)
    check_params(found, model)
    vocabulary = found.vocabulary_bytes or (data.vocabulary.model_bytes if data else b"")
    dtype = dtype or model.description().get("dtype", "float32")
    read = functools.partial(read_params, found, model, partitioner)
    return Network(model, read, dtype, description, vocabulary, found)


def _describe(
    found: StoredCheckpoint,
    model: LanguageModel,
    data: Dataset | None,
    kind: str,
    feature_lengths: Mapping[str, int],
) -> dict[str, Any]:
    """What a foreign checkpoint would say of itself, as `checkpoints.describe`."""
    if data is None:
        raise UserError(
            f"the checkpoint {found.path} ({found.format}) does not say with which vocabulary and "
            "lengths it was trained: `nlhf convert` makes one that does"
        )
    form = data.prompt_form.form
    return describe_as(kind, model, feature_lengths, data.vocabulary, data.rater, data.reward, form)


def describe_as(
    kind: str,
    model: LanguageModel,
    feature_lengths: Mapping[str, int],
    vocabulary: Vocabulary,
    rater: RaterTemplate,
    reward: RewardTemplate,
    prompt_form: str | None = None,
) -> dict[str, Any]:
    """`checkpoints.describe` of a network of some kind; what its kind does not need is left out."""
    templates = {"preference": rater.segments, "reward": reward.segments}
    return describe(
        kind=kind,
        model=model.description(),
        feature_lengths=feature_lengths,
        vocabulary_bytes=vocabulary.model_bytes,
        rater_template=templates.get(kind),
        rater_labels=vocabulary.rater_labels() if kind == "preference" else None,
        prompt_form=prompt_form,
    )


def check_vocabulary(found: StoredCheckpoint, data: Dataset) -> None:
    """Raises UserError if the checkpoint was trained with another vocabulary than the data's."""
    if found.vocabulary_bytes is not None:
        check_same_vocabulary(found.path, found.vocabulary_bytes, data.vocabulary)
    check_rows(found, data.vocabulary.size)


def check_rows(found: StoredCheckpoint, pieces: int) -> None:
    """Raises UserError if a vocabulary of `pieces` has more of them than the embedding has rows."""
    if found.model["vocab_size"] < pieces:
        raise UserError(
            f"the checkpoint {found.path} has {found.model['vocab_size']} rows in "
            f"token_embedder/embedding but the vocabulary has {pieces} pieces: use the vocabulary "
            "that it was trained with"
        )


def warn_of_short_texts(rater: Network, source: str, feature_lengths: Mapping[str, int]) -> None:
    """Says so if a rater was trained on shorter texts than `feature_lengths` let policies have.

    Nothing is known of a foreign rater's. `source` is the setting that names it.
    """
    pairs = [("text", "inputs"), ("summary", "targets")]
    shorter = [
        f"its '{name}' is {rater.feature_lengths[name]} but TASK_FEATURE_LENGTHS['{ours}'] is "
        f"{feature_lengths[ours]}"
        for name, ours in pairs
        if rater.feature_lengths.get(name, math.inf) < feature_lengths.get(ours, 0)
    ]
    if shorter:
        warn(
            f"{source} was trained on shorter texts than it is given here ({', and '.join(shorter)}"
            "): a policy's training gives it longer ones than it ever read, a tournament cuts them;"
            " lower these, or train the rater with longer ones"
        )


def shapes(model: LanguageModel) -> PyTree:
    """Shapes of the parameters as `model` makes them; traced once for all of its settings."""
    return _shapes(json.dumps(model.description(), sort_keys=True))


@functools.cache
def _shapes(description: str) -> PyTree:
    return jax.eval_shape(registry.build(json.loads(description)).init, jax.random.key(0))


def read_params(
    found: StoredCheckpoint, model: LanguageModel, partitioner: Partitioner, dtype: str
) -> PyTree:
    """The parameters on the mesh in `model`'s layout, whichever they are stored in.

    Those that the model's `frozen_params` leaves alone are float32, the others `dtype`. Raises
    UserError if they are not the model's.
    """
    stored, wanted = check_params(found, model), shapes(model)
    sharding = partitioner.tree_sharding(model.logical_axes(), wanted)
    frozen = jax.eval_shape(lambda params: model.frozen_params(params, dtype), wanted)
    return place(stored, sharding, jax.tree.map(lambda leaf: leaf.dtype, frozen))


def check_params(found: StoredCheckpoint, model: LanguageModel) -> PyTree:
    """The stored arrays, unread, in `model`'s layout. Raises UserError if they are not its."""
    wanted = shapes(model)
    stored = found.params
    if jax.tree.structure(stored) == jax.tree.structure(wanted):  # type: ignore[operator]
        check_fits(found.path, stored, wanted)
    else:
        stored = model.per_layer(stored)
        check_fits(found.path, stored, jax.eval_shape(model.per_layer, wanted))
        stored = model.from_per_layer(stored, join=Stacked)
    return stored
