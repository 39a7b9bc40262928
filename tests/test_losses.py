"""The losses against closed forms and automatic differentiation of what they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from nlhf_jax import losses

ROWS, TOKENS, VOCABULARY, TAU = 3, 4, 5, 0.2


def _random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _policy_gradient_arguments():
    log_probs, reference = -np.abs(_random(0, ROWS, TOKENS)), -np.abs(_random(1, ROWS, TOKENS))
    mask = np.asarray([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], np.float32)
    return log_probs, reference, _random(2, ROWS), mask, np.asarray([0.5, 0.3, 0.2], np.float32)


def test_reward_to_go_sums_the_present_and_the_future():
    to_go = losses.reward_to_go(jnp.asarray([[1.0, 2.0, 4.0], [0.0, -1.0, 0.5]]))
    np.testing.assert_allclose(to_go, [[7.0, 6.0, 4.0], [-0.5, -0.5, 0.5]])


def test_per_token_kl_is_the_sum_over_the_vocabulary():
    logits = _random(0, ROWS, TOKENS, VOCABULARY)
    reference = _random(1, ROWS, TOKENS, VOCABULARY)
    p, q = special.softmax(logits, axis=-1), special.softmax(reference, axis=-1)
    expected = special.rel_entr(p, q).sum(axis=-1)
    np.testing.assert_allclose(losses.per_token_kl(logits, reference), expected, rtol=1e-4)
    np.testing.assert_allclose(losses.per_token_kl(logits, logits + 3.0), 0.0, atol=1e-6)


def test_per_token_kl_is_finite_where_a_probability_vanishes():
    logits = jnp.asarray([[[0.0, -1e4]]])
    reference = jnp.asarray([[[0.0, 0.0]]])
    np.testing.assert_allclose(losses.per_token_kl(logits, reference), np.log(2.0), rtol=1e-6)
    gradient = jax.grad(lambda x: losses.per_token_kl(x, reference).sum())(logits)
    assert np.all(np.isfinite(gradient))


def test_the_sampled_form_gives_each_token_its_own_return():
    """The score of token n times advantage minus tau times the log ratios of tokens m >= n."""
    log_probs, reference, advantages, mask, weights = _policy_gradient_arguments()
    gradient = jax.grad(losses.policy_gradient_sampled_kl)(
        log_probs, reference, advantages, mask, weights, TAU
    )
    for row in range(ROWS):
        for n in range(TOKENS):
            ratios = ((log_probs - reference) * mask)[row, n:].sum()
            expected = -weights[row] * mask[row, n] * (advantages[row] - TAU * ratios)
            np.testing.assert_allclose(gradient[row, n], expected, atol=1e-6)


def test_the_exact_form_differentiates_the_kl_and_returns_that_of_the_future():
    log_probs, _, advantages, mask, weights = _policy_gradient_arguments()
    kl = np.abs(_random(3, ROWS, TOKENS))
    by_log_probs, by_kl = jax.grad(losses.policy_gradient_exact_kl, argnums=(0, 1))(
        log_probs, kl, advantages, mask, weights, TAU
    )
    np.testing.assert_allclose(by_kl, TAU * weights[:, None] * mask, atol=1e-6)
    for row in range(ROWS):
        for n in range(TOKENS):
            future = (kl * mask)[row, n + 1 :].sum()
            expected = -weights[row] * mask[row, n] * (advantages[row] - TAU * future)
            np.testing.assert_allclose(by_log_probs[row, n], expected, atol=1e-6)


@pytest.mark.parametrize(
    "loss", [losses.policy_gradient_sampled_kl, losses.policy_gradient_exact_kl]
)
def test_no_gradient_flows_into_advantages(loss):
    arguments = _policy_gradient_arguments()
    assert not np.any(jax.grad(loss, argnums=2)(*arguments, TAU))


def test_no_gradient_flows_into_the_reference():
    arguments = _policy_gradient_arguments()
    assert not np.any(jax.grad(losses.policy_gradient_sampled_kl, argnums=1)(*arguments, TAU))


@pytest.mark.parametrize(
    "loss", [losses.policy_gradient_sampled_kl, losses.policy_gradient_exact_kl]
)
def test_what_follows_the_end_of_a_response_changes_nothing(loss):
    log_probs, other, advantages, mask, weights = _policy_gradient_arguments()
    value_and_gradient = jax.value_and_grad(loss)
    noise = 100 * _random(4, ROWS, TOKENS) * (1 - mask)
    clean = value_and_gradient(log_probs, other, advantages, mask, weights, TAU)
    noisy = value_and_gradient(log_probs + noise, other - noise, advantages, mask, weights, TAU)
    jax.tree.map(np.testing.assert_array_equal, clean, noisy)


@pytest.mark.parametrize(
    "loss", [losses.policy_gradient_sampled_kl, losses.policy_gradient_exact_kl]
)
def test_losses_are_sums_over_rows(loss):
    """So that micro-batches add up."""
    arguments = _policy_gradient_arguments()
    parts = [loss(*(x[row : row + 1] for x in arguments), TAU) for row in range(ROWS)]
    np.testing.assert_allclose(sum(parts), loss(*arguments, TAU), rtol=1e-5)


def test_cross_entropy_weighs_every_token():
    log_probs, weights = -np.abs(_random(0, ROWS, TOKENS)), np.abs(_random(1, ROWS, TOKENS))
    expected = -np.sum(log_probs * weights)
    np.testing.assert_allclose(losses.cross_entropy(log_probs, weights), expected, rtol=1e-5)


def test_preference_cross_entropy_is_that_of_a_vote_shared_by_raters():
    logit, weights = _random(0, ROWS), np.asarray([0.5, 0.3, 0.2], np.float32)
    share = np.asarray([1.0, 0.7, 0.0], np.float32)
    p = special.expit(logit)
    expected = -np.sum(weights * (share * np.log(p) + (1 - share) * np.log(1 - p)))
    found = losses.preference_cross_entropy(logit, share, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    turned = losses.preference_cross_entropy(-logit, 1 - share, weights)
    np.testing.assert_allclose(found, turned, rtol=1e-5)


def test_preference_cross_entropy_is_least_at_the_share_of_votes():
    share = np.asarray([0.7], np.float32)
    slope = jax.grad(lambda x: losses.preference_cross_entropy(x, share, np.ones(1)))
    np.testing.assert_allclose(slope(special.logit(share)), 0.0, atol=1e-6)


def test_preference_cross_entropy_is_finite_for_a_rater_that_is_sure_and_wrong():
    found = losses.preference_cross_entropy(np.asarray([-1e4]), np.ones(1), np.ones(1))
    np.testing.assert_allclose(found, 1e4)


def test_leave_one_out_subtracts_the_mean_of_the_others():
    rewards = _random(0, 5)
    others = [np.mean(np.delete(rewards, i)) for i in range(5)]
    np.testing.assert_allclose(losses.leave_one_out_advantage(rewards), rewards - others, atol=1e-6)


def test_leave_one_out_does_not_see_what_all_rewards_share():
    rewards = _random(0, 5)
    np.testing.assert_allclose(
        losses.leave_one_out_advantage(rewards + 7.0),
        losses.leave_one_out_advantage(rewards),
        atol=1e-5,
    )
