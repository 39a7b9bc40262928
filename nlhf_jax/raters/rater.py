"""What every kind of rater is: a network, and how to ask it which of two responses is better."""

import abc
import dataclasses
from typing import Any, ClassVar

import jax

from nlhf_jax.models.language_model import LanguageModel, PyTree
from nlhf_jax.raters.packing import interleave


@dataclasses.dataclass(frozen=True)
class Rater(abc.ABC):
    """P(first > second | text) by a network; the kinds differ in what this can be.

    A kind says its `logit`; the rest follows. Token arrays are int32: text `[B, S]`, responses
    `[B, T]`.

    Attributes:
      kind: its name in checkpoints.
      antisymmetric: whether P(first > second) = 1 - P(second > first) by construction.
      model: the network.
    """

    kind: ClassVar[str]
    antisymmetric: ClassVar[bool] = True
    model: LanguageModel

    @abc.abstractmethod
    def description(self) -> dict[str, Any]:
        """JSON-able settings from which `raters.from_description` makes the same rater again."""

    @abc.abstractmethod
    def logit(
        self, params: PyTree, text: jax.Array, first: jax.Array, second: jax.Array
    ) -> jax.Array:
        """log(P / (1 - P)), float32 `[B]`, the pair read in this order."""

    def both_orders(
        self, params: PyTree, text: jax.Array, first: jax.Array, second: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The logits of P(first > second) and of P(second > first), `[B]` each, in one pass."""
        if self.antisymmetric:
            logit = self.logit(params, text, first, second)
            return logit, -logit
        logits = self.logit(
            params, interleave(text, text), interleave(first, second), interleave(second, first)
        )
        forward, backward = logits.reshape(-1, 2).T
        return forward, backward

    def probability(
        self,
        params: PyTree,
        text: jax.Array,
        first: jax.Array,
        second: jax.Array,
        both_orders: bool = True,
    ) -> jax.Array:
        """P(first > second | text) in [0, 1], float32 `[B]`.

        With `both_orders` it is `P(y, y')` averaged with `1 - P(y', y)`, which makes the answer
        exactly antisymmetric; otherwise the rater is asked once, in the order given, at half the
        cost. One that is antisymmetric by itself is asked once in any case.
        """
        if self.antisymmetric or not both_orders:
            return jax.nn.sigmoid(self.logit(params, text, first, second))
        forward, backward = self.both_orders(params, text, first, second)
        return (jax.nn.sigmoid(forward) + jax.nn.sigmoid(-backward)) / 2
