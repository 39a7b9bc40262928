"""The maths of the losses, on `[batch, length]` arrays. No state, no models.

B rows, T tokens, V vocabulary. `mask` is float32 `[B, T]`, 1 for tokens of the response (including
EOS). `weights` is float32 `[B]`: each row's share of the batch, 1/B in training.
Log-probabilities and KL are in nats.
"""

import jax
import jax.numpy as jnp


def reward_to_go(per_token: jax.Array) -> jax.Array:
    """Sums over the present and future tokens: out[:, n] = sum over m >= n of per_token[:, m]."""
    return jnp.flip(jnp.cumsum(jnp.flip(per_token, axis=-1), axis=-1), axis=-1)


def per_token_kl(logits: jax.Array, reference_logits: jax.Array) -> jax.Array:
    """KL(policy || reference) of the next token at every prefix: `[B, T, V]` twice to `[B, T]`."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    log_q = jax.nn.log_softmax(reference_logits, axis=-1)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def policy_gradient_sampled_kl(
    log_probs: jax.Array,
    reference_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    weights: jax.Array,
    tau: float,
) -> jax.Array:
    """Nash-MD-PG's loss with the KL as sampled log ratios (Munos et al. 2024, sec. 7.1).

    Its gradient is minus that of `E[advantage] - tau KL(policy, reference)` in expectation over
    responses of the policy: the score of token n is multiplied by the log ratios of tokens m >= n.
    Without the future ones (m > n) the gradient is biased.

    Args:
      log_probs: `[B, T]`, of the sampled tokens under the policy; the gradient flows here only.
      reference_log_probs: `[B, T]`, of the same tokens under the reference.
      advantages: `[B]`, for example P(y > y') - 1/2.
      mask: `[B, T]`.
      weights: `[B]`.
      tau: regularisation, >= 0.

    Returns:
      A scalar; only its gradient means something.
    """
    log_ratio = (log_probs - reference_log_probs) * mask
    returns = advantages[:, None] - tau * reward_to_go(log_ratio)
    # The theory has no gradient through the bracket: it is the return of the sampled response.
    returns = jax.lax.stop_gradient(returns)
    return -jnp.sum(weights[:, None] * mask * returns * log_probs)


def policy_gradient_exact_kl(
    log_probs: jax.Array,
    kl: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    weights: jax.Array,
    tau: float,
) -> jax.Array:
    """The same objective with the exact KL of every prefix in place of the sampled log ratio.

    The KL at token n is differentiated directly; the KLs at m > n depend on token n only through
    the prefixes it leads to, so they enter its return. Less variance than the sampled form.

    Args:
      log_probs: `[B, T]`, as in `policy_gradient_sampled_kl`.
      kl: `[B, T]` from `per_token_kl`; the gradient flows through it too.
      advantages: `[B]`.
      mask: `[B, T]`.
      weights: `[B]`.
      tau: regularisation, >= 0.

    Returns:
      A scalar; only its gradient means something.
    """
    kl = kl * mask
    future = reward_to_go(kl) - kl
    returns = jax.lax.stop_gradient(advantages[:, None] - tau * future)
    return -jnp.sum(weights[:, None] * (mask * returns * log_probs - tau * kl))


def ipo(
    log_probs: jax.Array,
    reference_log_probs: jax.Array,
    preference: jax.Array,
    mask: jax.Array,
    weights: jax.Array,
    tau: float,
) -> jax.Array:
    """IPO on pairs of sampled responses y and y' (Calandriello et al. 2024).

    With the log ratio `h = log(pi(y) / mu(y)) - log(pi(y') / mu(y'))`, a pair costs

        tau h^2 - (2 p - 1) h,

    which is the paper's `-log(pi(y) / pi(y')) + tau h^2`, weighted by p, and by 1 - p with y and y'
    swapped, up to a constant; and tau times the squared loss
    `p (h - 1 / (2 tau))^2 + (1 - p) (h + 1 / (2 tau))^2` up to another. It is least where
    `h = (p - 1/2) / tau`. The vote is averaged out: one drawn with probability p would only add
    noise. If y and y' are both the policy's and p is antisymmetric, the gradient is in expectation
    4 times that of self-play.

    Args:
      log_probs: `[B, 2, T]`, of the tokens of y and y' under the policy; the gradient flows here
        only.
      reference_log_probs: `[B, 2, T]`, of the same tokens under the reference.
      preference: `[B]`, p = P(y > y') in [0, 1].
      mask: `[B, 2, T]`.
      weights: `[B]`.
      tau: regularisation, > 0 for a loss that has a minimum.

    Returns:
      A scalar, 0 for a policy that is the reference.
    """
    # The theory has no gradient through p, nor through whoever wrote y and y'.
    preference, reference_log_probs = jax.lax.stop_gradient((preference, reference_log_probs))
    log_ratio = jnp.sum((log_probs - reference_log_probs) * mask, axis=-1)
    h = log_ratio[:, 0] - log_ratio[:, 1]
    return jnp.sum(weights * (tau * jnp.square(h) - (2.0 * preference - 1.0) * h))


def cross_entropy(log_probs: jax.Array, token_weights: jax.Array) -> jax.Array:
    """Weighted sum of -log p(target): `[B, T]` twice to a scalar."""
    return -jnp.sum(log_probs * token_weights)


def preference_cross_entropy(
    logit: jax.Array, first_share: jax.Array, weights: jax.Array
) -> jax.Array:
    """Cross-entropy of votes: `first_share` in [0, 1] of the raters prefer the first response.

    `logit` is log(P / (1 - P)) of the first being preferred: the difference of the two answers'
    logits for a preference model, the difference of the rewards for Bradley-Terry. All are `[B]`.
    """
    losses = -first_share * jax.nn.log_sigmoid(logit)
    losses -= (1.0 - first_share) * jax.nn.log_sigmoid(-logit)
    return jnp.sum(weights * losses)


def leave_one_out_advantage(rewards: jax.Array) -> jax.Array:
    """Each reward minus the mean of the others: `[B]` to `[B]`, B >= 2.

    The baseline of a row does not depend on the row's own response, so the gradient stays unbiased
    (Kool et al. 2019, REINFORCE leave-one-out).
    """
    count = rewards.shape[0]
    return (rewards - jnp.mean(rewards)) * (count / (count - 1))
