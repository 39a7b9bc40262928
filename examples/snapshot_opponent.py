"""An opponent with a parameter set of its own: the policy at the last multiple of K steps.

Between self-play (K = 1) and the best response to where training started (K larger than the run).
"""

import jax
import jax.numpy as jnp

from nlhf_jax.opponents import Opponent


def snapshot(every: int, beta: float = 0.0) -> Opponent:
    """Plays snapshot^(1 - beta) reference^beta, one token at a time.

    Args:
      every: K, in training steps.
      beta: weight of the reference, in [0, 1).
    """

    def follow(kept, params, step):
        refresh = step % every == 0
        return jax.tree.map(lambda old, new: jnp.where(refresh, new, old), kept, params)

    weights = {"snapshot": 1.0 - beta} | ({"reference": beta} if beta else {})
    return Opponent(weights, keeps={"snapshot": follow})
