"""The reward model: a number for each response, so that preferences are transitive."""

import dataclasses
from typing import Any

import jax

from nlhf_jax.models.language_model import PyTree
from nlhf_jax.raters.packing import (
    REWARD_SLOTS,
    Template,
    check_slots,
    first_logits,
    interleave,
    pack,
)
from nlhf_jax.raters.rater import Rater


@dataclasses.dataclass(frozen=True)
class RewardModel(Rater):
    """r(text, response): the network's last logit at its first output (Munos et al. 2024, app. E).

    As a rater it is Bradley and Terry's (1952): P(y > y') = sigmoid(r(y) - r(y')).
    """

    template: Template
    kind = "reward"

    def __post_init__(self):
        check_slots(self.template, REWARD_SLOTS)

    def description(self) -> dict[str, Any]:
        return {"template": list(self.template)}

    @property
    def rewards(self) -> bool:
        return True

    def reward(self, params: PyTree, text: jax.Array, response: jax.Array) -> jax.Array:
        """Float32 `[B]`, from `[B, S]` and `[B, T]`; only differences on a text mean something."""
        inputs = pack(self.template, {"text": text, "first": response}, self.model.tokens)
        return first_logits(self.model, params, inputs)[:, -1]

    def logit(
        self, params: PyTree, text: jax.Array, first: jax.Array, second: jax.Array
    ) -> jax.Array:
        rewards = self.reward(params, interleave(text, text), interleave(first, second))
        one, other = rewards.reshape(-1, 2).T
        return one - other
