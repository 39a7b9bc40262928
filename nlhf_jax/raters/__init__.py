"""Raters: networks that say, on the device, which of two responses is better; scorers.

Four kinds answer one question, P(y > y' | text), behind one interface, `Rater`; `scorers` makes of
a rater what an objective learns from.

| kind | reads | may be circular | passes for all pairs of K responses |
|---|---|---|---|
| `PreferenceModel` | both responses, in each order | yes | K (K - 1) |
| `AntisymmetricModel` | the same, and each response alone | yes | K (K - 1) + K |
| `PreferenceEmbedding` | each response alone | yes | K |
| `RewardModel` | each response alone | no | K |
"""

from collections.abc import Callable, Mapping
from typing import Any

from nlhf_jax.models.language_model import LanguageModel
from nlhf_jax.raters.embedding import PreferenceEmbedding
from nlhf_jax.raters.packing import Template, interleave, pack
from nlhf_jax.raters.pair import AntisymmetricModel, PreferenceModel
from nlhf_jax.raters.rater import Rater
from nlhf_jax.raters.reward import RewardModel
from nlhf_jax.raters.scorers import (
    EnsembleScorer,
    PreferenceScorer,
    RewardScorer,
    Scorer,
    score_against,
    score_and_more,
)

__all__ = [
    "KINDS",
    "AntisymmetricModel",
    "EnsembleScorer",
    "PreferenceEmbedding",
    "PreferenceModel",
    "PreferenceScorer",
    "Rater",
    "RewardModel",
    "RewardScorer",
    "Scorer",
    "Template",
    "from_description",
    "interleave",
    "pack",
    "score_against",
    "score_and_more",
]

KINDS: dict[str, Callable[..., Rater]] = {
    rater.kind: rater
    for rater in (PreferenceModel, RewardModel, PreferenceEmbedding, AntisymmetricModel)
}


def from_description(kind: str, model: LanguageModel, settings: Mapping[str, Any]) -> Rater:
    """The rater of a kind over a network.

    Args:
      kind: of `KINDS`.
      model: the network.
      settings: as of the rater's `description`, lists in place of tuples or not.
    """
    return KINDS[kind](model, **{name: _frozen(value) for name, value in settings.items()})


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
