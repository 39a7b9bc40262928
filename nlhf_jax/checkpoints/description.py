"""What a checkpoint says about itself."""

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

from nlhf_jax.errors import UserError


def describe(
    *,
    kind: str,
    model: Mapping[str, Any],
    feature_lengths: Mapping[str, int],
    vocabulary_bytes: bytes,
    rater_template: Any = None,
    rater_labels: Any = None,
    rater_settings: Mapping[str, Any] | None = None,
    prompt_form: str | None = None,
    trained_against: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a checkpoint says about itself, as a JSON-able dict.

    Args:
      kind: the learner's kind: "supervised", "policy", or of `raters.KINDS`.
      model: the model's configuration, `dataclasses.asdict(config)`.
      feature_lengths: tokens per feature, the EOS included.
      vocabulary_bytes: the SentencePiece model file's content.
      rater_template: token ids of the template's segments; None where the network rates nothing.
      rater_labels: token ids of "1" and "2"; None where the network has no such labels.
      rater_settings: what else a rater's kind has of settings, such as `cyclic` of an embedding.
      prompt_form: what stands around a prompt's text (`data.prompts.PromptForm.form`), for those
        who write prompts for it; None, as in checkpoints of release 0.1: nothing.
      trained_against: of a policy the rater of its training, `Network.identity`, with `others` if
        there were several; {} if that was no network; None, as in checkpoints of release 0.1: not
        known.
    """
    return {
        "kind": kind,
        "model": dict(model),
        "feature_lengths": dict(feature_lengths),
        "rater_template": rater_template,
        "rater_labels": rater_labels,
        "rater_settings": None if rater_settings is None else dict(rater_settings),
        "prompt_form": prompt_form,
        "trained_against": None if trained_against is None else dict(trained_against),
        "vocabulary": {
            "sha256": hashlib.sha256(vocabulary_bytes).hexdigest(),
            "base64": base64.b64encode(vocabulary_bytes).decode("ascii"),
        },
    }


def check_description(description: Mapping[str, Any]) -> None:
    """Raises ValueError, with the entry's name, unless all that is read of it has its type."""
    wanted: dict[str, tuple[type, ...]] = {
        "kind": (str,),
        "model": (dict,),
        "vocabulary": (dict,),
        "step": (int,),
        "data_position": (dict,),
        "metrics": (dict,),
        "best": (dict,),
        "feature_lengths": (dict,),
        "rater_template": (list, type(None)),
        "rater_labels": (list, type(None)),
        "rater_settings": (dict, type(None)),
        "prompt_form": (str, type(None)),
    }
    for name, kinds in wanted.items():
        if name in description and type(description[name]) not in kinds:
            raise ValueError(f"{name!r} is {str(description[name])[:40]!r} in its description")
    numbers = {**description["metrics"], **description.get("feature_lengths", {})}
    if not all(isinstance(number, int | float) for number in numbers.values()):
        raise ValueError("a metric or a length is no number in its description")


def check_same_vocabulary(path: str, model_bytes: bytes, vocabulary: Any) -> None:
    """Raises UserError unless `vocabulary` is the one that a checkpoint was trained with.

    Args:
      path: the checkpoint's, for the error.
      model_bytes: its SentencePiece model.
      vocabulary: has `model_bytes`, as `data.vocabularies.Vocabulary`.
    """
    wanted, met = (hashlib.sha256(m).hexdigest() for m in (model_bytes, vocabulary.model_bytes))
    if met != wanted:
        raise UserError(
            f"the vocabulary (sha256 {met[:12]}) is not the one that the checkpoint "
            f"{path} was trained with (sha256 {wanted[:12]}): token ids would mean "
            "other words; use the checkpoint's vocabulary or train again with this one"
        )
