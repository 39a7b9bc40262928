"""The maths of the losses, on `[batch, length]` arrays. No state, no models.

B rows, T tokens, V vocabulary. `mask` is float32 `[B, T]`, 1 for tokens of the response (including
EOS). `row_weights` is float32 `[B]`: each row's part of the batch, 1/B in training, 0 for rows that
only fill a batch up. Log-probabilities and KL are in nats. Shapes are asserted at every door: a
wrong one would often broadcast to a loss that trains something else.
"""

import chex
import jax
import jax.numpy as jnp

from nlhf_jax.errors import UserError


def reward_to_go(per_token: jax.Array) -> jax.Array:
    """Sums over the present and future tokens: out[:, n] = sum over m >= n of per_token[:, m]."""
    return jnp.flip(jnp.cumsum(jnp.flip(per_token, axis=-1), axis=-1), axis=-1)


def per_token_kl(logits: jax.Array, reference_logits: jax.Array) -> jax.Array:
    """KL(policy || reference) of the next token at every prefix: `[B, T, V]` twice to `[B, T]`."""
    chex.assert_rank(logits, 3)
    chex.assert_equal_shape([logits, reference_logits])
    norms = [jax.nn.logsumexp(x, axis=-1, keepdims=True) for x in (logits, reference_logits)]
    log_p, log_q = logits - norms[0], reference_logits - norms[1]  # log_softmax in fewer passes
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def policy_gradient_sampled_kl(
    log_probs: jax.Array,
    reference_log_probs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    row_weights: jax.Array,
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
      row_weights: `[B]`.
      tau: regularisation, >= 0.

    Returns:
      A scalar; only its gradient means something.
    """
    _assert_token_shapes(log_probs, reference_log_probs, mask, per_row=(advantages, row_weights))
    log_ratio = (log_probs - reference_log_probs) * mask
    returns = advantages[:, None] - tau * reward_to_go(log_ratio)
    # The theory has no gradient through the bracket: it is the return of the sampled response.
    returns = jax.lax.stop_gradient(returns)
    return -jnp.sum(row_weights[:, None] * mask * returns * log_probs)


def policy_gradient_exact_kl(
    log_probs: jax.Array,
    kl: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    row_weights: jax.Array,
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
      row_weights: `[B]`.
      tau: regularisation, >= 0.

    Returns:
      A scalar; only its gradient means something.
    """
    _assert_token_shapes(log_probs, kl, mask, per_row=(advantages, row_weights))
    kl = kl * mask
    future = reward_to_go(kl) - kl
    returns = jax.lax.stop_gradient(advantages[:, None] - tau * future)
    return -jnp.sum(row_weights[:, None] * (mask * returns * log_probs - tau * kl))


def ipo(
    log_probs: jax.Array,
    reference_log_probs: jax.Array,
    preference: jax.Array,
    mask: jax.Array,
    row_weights: jax.Array,
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
      row_weights: `[B]`.
      tau: regularisation, > 0 for a loss that has a minimum.

    Returns:
      A scalar, 0 for a policy that is the reference.
    """
    log_ratio = _log_ratios(log_probs, reference_log_probs, preference, mask, row_weights)
    preference = jax.lax.stop_gradient(preference)
    h = log_ratio[:, 0] - log_ratio[:, 1]
    return jnp.sum(row_weights * (tau * jnp.square(h) - (2.0 * preference - 1.0) * h))


def dpo(
    log_probs: jax.Array,
    reference_log_probs: jax.Array,
    preference: jax.Array,
    mask: jax.Array,
    row_weights: jax.Array,
    tau: float,
) -> jax.Array:
    """Online DPO (Guo et al. 2024, arXiv 2402.04792): a logistic regression of the log ratio.

    With h of `ipo` a pair costs `-p log sigmoid(tau h) - (1 - p) log sigmoid(-tau h)`: the vote is
    averaged out. It is least where `tau h = logit p`, which a Bradley-Terry preference allows for
    all pairs at once. Arguments as of `ipo`.

    Returns:
      A scalar, log 2 for a policy that is the reference.
    """
    log_ratio = _log_ratios(log_probs, reference_log_probs, preference, mask, row_weights)
    h = tau * (log_ratio[:, 0] - log_ratio[:, 1])
    return preference_cross_entropy(h, jax.lax.stop_gradient(preference), row_weights)


def sppo(
    log_probs: jax.Array,
    previous_log_probs: jax.Array,
    win_rates: jax.Array,
    mask: jax.Array,
    row_weights: jax.Array,
    eta: float,
) -> jax.Array:
    """SPPO (Wu et al. 2024, arXiv 2405.00675): the log ratio is regressed on the win rate.

    With the log ratio `r = log(pi(y) / pi_t(y))` a response costs

        r^2 / (2 eta) - (w - 1/2) r,

    which is the paper's `(r - eta (w - 1/2))^2` divided by 2 eta, up to a constant, so that at
    pi = pi_t its gradient is that of self-play without regularisation.

    Args:
      log_probs: `[B, G, T]`, of the tokens of G responses of pi_t under the policy.
      previous_log_probs: `[B, G, T]`, of the same tokens under pi_t.
      win_rates: `[B, G]`, w = P(y > pi_t) in [0, 1], or an estimate of it.
      mask: `[B, G, T]`.
      row_weights: `[B]`.
      eta: the step size of multiplicative weights, > 0.

    Returns:
      A scalar, the mean over the G responses; 0 for a policy that is pi_t.
    """
    chex.assert_rank(log_probs, 3)
    chex.assert_equal_shape([log_probs, previous_log_probs, mask])
    chex.assert_shape(win_rates, log_probs.shape[:2])
    chex.assert_shape(row_weights, log_probs.shape[:1])
    win_rates, previous_log_probs = jax.lax.stop_gradient((win_rates, previous_log_probs))
    log_ratio = jnp.sum((log_probs - previous_log_probs) * mask, axis=-1)
    cost = jnp.square(log_ratio) / (2.0 * eta) - (win_rates - 0.5) * log_ratio
    return jnp.sum(row_weights * jnp.mean(cost, axis=-1))


def _log_ratios(
    log_probs: jax.Array,
    reference_log_probs: jax.Array,
    preference: jax.Array,
    mask: jax.Array,
    row_weights: jax.Array,
) -> jax.Array:
    """`log(pi(y) / mu(y))` of both responses of a pair, `[B, 2]`."""
    chex.assert_shape([log_probs, reference_log_probs, mask], (None, 2, None))
    chex.assert_equal_shape([log_probs, reference_log_probs, mask])
    chex.assert_shape([preference, row_weights], (log_probs.shape[0],))
    # The theory has no gradient through the reference, nor through whoever wrote y and y'.
    reference_log_probs = jax.lax.stop_gradient(reference_log_probs)
    return jnp.sum((log_probs - reference_log_probs) * mask, axis=-1)


def cross_entropy(log_probs: jax.Array, token_weights: jax.Array) -> jax.Array:
    """Weighted sum of -log p(target): `[B, T]` twice to a scalar."""
    chex.assert_rank(log_probs, 2)
    chex.assert_equal_shape([log_probs, token_weights])
    return -jnp.sum(log_probs * token_weights)


def preference_cross_entropy(
    logit: jax.Array, vote_share: jax.Array, row_weights: jax.Array
) -> jax.Array:
    """Cross-entropy of votes: `vote_share` in [0, 1] of the raters prefer the first response.

    `logit` is log(P / (1 - P)) of the first being preferred: the difference of the two answers'
    logits for a preference model, the difference of the rewards for Bradley-Terry. All are `[B]`.
    """
    chex.assert_rank(logit, 1)
    chex.assert_equal_shape([logit, vote_share, row_weights])
    losses = -vote_share * jax.nn.log_sigmoid(logit)
    losses -= (1.0 - vote_share) * jax.nn.log_sigmoid(-logit)
    return jnp.sum(row_weights * losses)


def centred_preference(preference: jax.Array, row_weights: jax.Array) -> jax.Array:
    """`P(y > y') - 1/2`, `[B]` to `[B]`: the paper's control variate, which needs no value network.

    1/2 is the mean in self-play. The other rows, whose weights are `row_weights`, have no part.
    """
    chex.assert_rank(preference, 1)
    chex.assert_equal_shape([preference, row_weights])
    return preference - 0.5


def leave_one_out(rewards: jax.Array, row_weights: jax.Array) -> jax.Array:
    """Each reward minus the mean of the others: `[B]` to `[B]`.

    The baseline of a row does not depend on the row's own response, so the gradient stays unbiased
    (Kool et al. 2019, REINFORCE leave-one-out). Rows of weight 0 have no part in the mean; a row
    without others has the advantage 0. Raises UserError where there never are others.
    """
    chex.assert_rank(rewards, 1)
    chex.assert_equal_shape([rewards, row_weights])
    if rewards.shape[0] == 1:
        raise UserError(
            "BATCH_SIZE is 1 but a reward is compared with the mean of the batch's other rows, of "
            "which there would be none to learn from: give at least 2"
        )
    count = jnp.sum(row_weights > 0)
    return (rewards - jnp.sum(row_weights * rewards)) * (count / jnp.maximum(count - 1, 1))


def _assert_token_shapes(*per_token: jax.Array, per_row: tuple[jax.Array, ...]) -> None:
    """`[B, T]` all of the first, `[B]` all of the others."""
    chex.assert_rank(per_token, 2)
    chex.assert_equal_shape(per_token)
    chex.assert_shape(per_row, per_token[0].shape[:1])
