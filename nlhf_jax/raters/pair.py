"""Raters that read both responses at once: the paper's, and the same made antisymmetric."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from nlhf_jax.models.language_model import PyTree
from nlhf_jax.raters.packing import (
    PAIR_SLOTS,
    REWARD_SLOTS,
    Template,
    check_slots,
    first_logits,
    pack,
)
from nlhf_jax.raters.rater import Rater


@dataclasses.dataclass(frozen=True)
class PreferenceModel(Rater):
    """P(first > second | text) as a network answers it (Munos et al. 2024, sec. 3.3 and app. E).

    A text-to-text network reads the template and answers "1" or "2"; P is the two-way softmax of
    those two logits at its first output. No Bradley-Terry assumption: P may be intransitive.
    """

    template: Template
    labels: tuple[int, int]  # token ids of the answers "1" and "2"
    kind = "preference"
    antisymmetric = False

    def __post_init__(self):
        check_slots(self.template, PAIR_SLOTS)

    def description(self) -> dict[str, Any]:
        return {"template": list(self.template), "labels": list(self.labels)}

    def logit(
        self, params: PyTree, text: jax.Array, first: jax.Array, second: jax.Array
    ) -> jax.Array:
        slots = {"text": text, "first": first, "second": second}
        inputs = pack(self.template, slots, self.model.tokens)
        logits = first_logits(self.model, params, inputs)
        return logits[:, self.labels[0]] - logits[:, self.labels[1]]


@dataclasses.dataclass(frozen=True)
class AntisymmetricModel(Rater):
    """The pair model made exactly antisymmetric, beside a reward for each response.

    The logit of P(y > y') is half the difference of the pair model's logits in both orders, plus
    r(y) - r(y'), the last logits of the same network that reads one response. The difference alone
    would start to learn from nothing: as long as the network does not compare its two responses,
    no vote tells it anything. The rewards learn from the first vote on.
    """

    template: Template
    labels: tuple[int, int]
    reward_template: Template
    kind = "antisymmetric"

    def __post_init__(self):
        check_slots(self.template, PAIR_SLOTS)
        check_slots(self.reward_template, REWARD_SLOTS)

    def description(self) -> dict[str, Any]:
        return {
            "template": list(self.template),
            "labels": list(self.labels),
            "reward_template": list(self.reward_template),
        }

    def logit(
        self, params: PyTree, text: jax.Array, first: jax.Array, second: jax.Array
    ) -> jax.Array:
        tokens = self.model.tokens
        pairs = [
            pack(self.template, {"text": text, "first": one, "second": other}, tokens)
            for one, other in ((first, second), (second, first))
        ]
        alone = [
            pack(self.reward_template, {"text": text, "first": one}, tokens)
            for one in (first, second)
        ]
        length = max(inputs.shape[1] for inputs in (*pairs, *alone))
        rows = [
            jnp.pad(inputs, ((0, 0), (0, length - inputs.shape[1])), constant_values=tokens.pad)
            for inputs in (*pairs, *alone)
        ]
        # The four questions of an example are neighbours, as in `interleave`.
        inputs = jnp.stack(rows, axis=1).reshape(-1, length)
        logits = first_logits(self.model, params, inputs).reshape(-1, 4, self.model.vocab_size)
        answers = logits[:, :2, self.labels[0]] - logits[:, :2, self.labels[1]]
        rewards = logits[:, 2:, -1]
        return (answers[:, 0] - answers[:, 1]) / 2 + rewards[:, 0] - rewards[:, 1]
