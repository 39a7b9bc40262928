"""A scorer without a network: how near a response's length is to a wish.

Useful as the simplest reward with a known optimum, and to see what a policy gives up for it.
"""

import dataclasses

import jax
import jax.numpy as jnp

from nlhf_jax import losses
from nlhf_jax.models.language_model import T5_TOKENS, response_mask


@dataclasses.dataclass(frozen=True)
class LengthScorer:
    """Minus the distance from `wish`, in tokens with EOS."""

    wish: float
    measures = "reward"
    pairwise = False

    def score(self, params, text, y, other):
        length = jnp.sum(response_mask(y, T5_TOKENS.eos), axis=-1)
        return -jnp.abs(length - self.wish)

    def advantages(self, scores, row_weights):
        return losses.leave_one_out(scores, row_weights)

    def win_rate(self, params, text, y, other):
        difference = self.score(params, text, y, None) - self.score(params, text, other, None)
        return jax.nn.sigmoid(difference)


def of_length(rater, wish: float) -> LengthScorer:
    """What gin names: gets the network of RATER_CHECKPOINT, here None."""
    return LengthScorer(wish)
