"""What every kind of rater is: a network, and how to ask it which of two responses is better."""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from nlhf_jax.errors import UserError
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

    @property
    def rewards(self) -> bool:
        """Whether it has rewards that say all it prefers."""
        return False

    def reward(self, params: PyTree, text: jax.Array, response: jax.Array) -> jax.Array:
        """A number for each response, float32 `[B]`; only differences on a text mean something.

        Raises UserError for a rater without `rewards`.
        """
        raise UserError(f"a {self.kind} model compares responses: it has no reward of one alone")

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
            return (logit := self.logit(params, text, first, second)), -logit
        logits = self.logit(
            params, interleave(text, text), interleave(first, second), interleave(second, first)
        )
        forward, backward = logits.reshape(-1, 2).T
        return forward, backward

    def against(
        self,
        params: PyTree,
        text: jax.Array,
        y: jax.Array,
        others: jax.Array,
        both_orders: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """The logits of P(y > y') and of P(y' > y) for K others `[B, K, T]`: `[B, K]` each.

        Without `both_orders` the second is minus the first.
        """
        batch, count, length = others.shape
        # A row's K pairs are neighbours, so they stay on the device that has it.
        text, y = (jnp.repeat(rows, count, axis=0) for rows in (text, y))
        pairs = (params, text, y, others.reshape(-1, length))
        if both_orders:
            forward, backward = self.both_orders(*pairs)
        else:
            forward = self.logit(*pairs)
            backward = -forward
        return forward.reshape(batch, count), backward.reshape(batch, count)

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
