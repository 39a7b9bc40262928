"""An objective: a hinge on the log ratio of a pair, in place of IPO's square.

Both responses are the opponent's. With the log ratio h of IPO and d = 2 P(y > y') - 1, a pair costs
`|d| max(0, margin - sign(d) h)`: once the better response is ahead by the margin, it is left alone.
"""

import dataclasses

import jax.numpy as jnp

from nlhf_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Hinge:
    """`margin` is in nats."""

    margin: float
    learned = 2  # the loss reads the log-probabilities of y and of y'

    def players(self, opponent, scorer):
        if opponent is None or not scorer.pairwise:
            raise UserError("the hinge compares pairs: give an opponent and a preference model")
        return [opponent, opponent]

    def targets(self, scorer, scores, row_weights):
        return 2.0 * scores - 1.0

    def loss(self, scored):
        log_ratio = (scored.log_probs - scored.reference_log_probs) * scored.mask
        h = jnp.sum(log_ratio[:, 0] - log_ratio[:, 1], axis=-1)
        behind = jnp.maximum(0.0, self.margin - jnp.sign(scored.targets) * h)
        return jnp.sum(scored.row_weights * jnp.abs(scored.targets) * behind)
