"""From a checkpoint's description of its model to the model."""

from collections.abc import Mapping
from typing import Any

from nlhf_jax.errors import UserError
from nlhf_jax.models.language_model import LanguageModel
from nlhf_jax.models.t5 import T5
from nlhf_jax.models.t5_layers import T5Config

_FAMILIES = {"t5": (T5, T5Config)}


def build(description: Mapping[str, Any]) -> LanguageModel:
    """The model whose `description()` this is. Raises UserError for an unknown one."""
    settings = dict(description)
    family = settings.pop("family", None)
    if family not in _FAMILIES:
        raise UserError(f"the model family {family!r} is unknown; there is {', '.join(_FAMILIES)}")
    model, config = _FAMILIES[family]
    try:
        return model(config(**settings))
    except TypeError as error:
        raise UserError(
            f"the model's description does not fit {config.__name__}: {error}"
        ) from error
