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


def _ipo_arguments():
    log_probs = -np.abs(_random(0, ROWS, 2, TOKENS))
    reference = -np.abs(_random(1, ROWS, 2, TOKENS))
    lengths = np.asarray([[4, 2], [1, 3], [2, 2]])
    mask = (np.arange(TOKENS) < lengths[..., None]).astype(np.float32)
    preference = np.asarray([0.9, 0.5, 0.0], np.float32)
    return log_probs, reference, preference, mask, np.asarray([0.5, 0.3, 0.2], np.float32)


def _labelled(log_probs, reference, mask):
    """The losses `[B]` of a vote for the first response of each pair."""
    log_pi = (log_probs * mask).sum(axis=-1)
    log_mu = (reference * mask).sum(axis=-1)
    h = (log_pi - log_mu)[:, 0] - (log_pi - log_mu)[:, 1]
    return -(log_pi[:, 0] - log_pi[:, 1]) + TAU * h**2, h


def test_ipo_is_the_loss_of_both_votes_up_to_what_the_policy_cannot_change():
    """Calandriello et al. 2024: p and 1 - p times the losses of the pair and of the pair turned."""
    log_probs, reference, preference, mask, weights = _ipo_arguments()

    def published(log_probs):
        of_pair, _ = _labelled(log_probs, reference, mask)
        of_turned, _ = _labelled(log_probs[:, ::-1], reference[:, ::-1], mask[:, ::-1])
        return (weights * (preference * of_pair + (1 - preference) * of_turned)).sum()

    found = jax.grad(losses.ipo)(*_ipo_arguments(), TAU)
    np.testing.assert_allclose(found, jax.grad(published)(log_probs), atol=1e-6)
    # At the reference the published loss is minus the gain in log-probability, and this one is 0.
    np.testing.assert_array_equal(
        losses.ipo(reference, reference, preference, mask, weights, TAU), 0.0
    )


def test_ipo_is_tau_times_the_squared_loss_of_votes_up_to_a_constant():
    log_probs, reference, preference, mask, weights = _ipo_arguments()
    _, h = _labelled(log_probs, reference, mask)
    goal = 1 / (2 * TAU)
    squared = preference * (h - goal) ** 2 + (1 - preference) * (h + goal) ** 2
    expected = (weights * (TAU * squared - 1 / (4 * TAU))).sum()
    np.testing.assert_allclose(losses.ipo(*_ipo_arguments(), TAU), expected, rtol=1e-5)


def test_ipo_gives_every_token_of_a_response_the_same_gradient_and_its_rival_the_opposite():
    log_probs, reference, preference, mask, weights = _ipo_arguments()
    _, h = _labelled(log_probs, reference, mask)
    slope = weights * (2 * TAU * h - (2 * preference - 1))
    expected = np.stack([slope, -slope], axis=1)[..., None] * mask
    np.testing.assert_allclose(jax.grad(losses.ipo)(*_ipo_arguments(), TAU), expected, atol=1e-6)


def test_ipo_is_least_at_the_best_response_to_any_sampler():
    """pi(y) ∝ mu(y) exp(P(y > sampler) / tau), whoever the sampler is."""
    y, other = (index.ravel() for index in np.indices((VOCABULARY, VOCABULARY)))
    preference = special.expit(_random(0, VOCABULARY, VOCABULARY))
    preference = (preference + 1 - preference.T) / 2
    log_mu = special.log_softmax(_random(1, VOCABULARY))
    sampler = special.softmax(_random(2, VOCABULARY))
    pairs = np.stack([y, other], axis=1)[..., None]  # of responses of one token

    def slope(logits):
        def loss(logits):
            log_pi = jax.nn.log_softmax(logits)
            return losses.ipo(
                log_pi[pairs],
                log_mu[pairs],
                preference[y, other],
                np.ones(pairs.shape),
                sampler[y] * sampler[other],
                TAU,
            )

        return np.abs(jax.grad(loss)(jnp.asarray(logits))).max()

    best = log_mu + preference @ sampler / TAU
    assert slope(best) < 1e-6 < 1e-2 < slope(log_mu)


@pytest.mark.parametrize("frozen", [1, 2], ids=["reference", "preference"])
def test_no_gradient_of_ipo_flows_into_what_is_frozen(frozen):
    assert not np.any(jax.grad(losses.ipo, argnums=frozen)(*_ipo_arguments(), TAU))


def test_ipo_sees_nothing_after_the_end_of_a_response():
    log_probs, reference, preference, mask, weights = _ipo_arguments()
    noise = 100 * _random(4, ROWS, 2, TOKENS) * (1 - mask)
    value_and_gradient = jax.value_and_grad(losses.ipo)
    clean = value_and_gradient(log_probs, reference, preference, mask, weights, TAU)
    noisy = value_and_gradient(log_probs + noise, reference, preference, mask, weights, TAU)
    jax.tree.map(np.testing.assert_array_equal, clean, noisy)


def test_ipo_is_a_sum_over_rows():
    """So that micro-batches add up."""
    arguments = _ipo_arguments()
    parts = [losses.ipo(*(x[row : row + 1] for x in arguments), TAU) for row in range(ROWS)]
    np.testing.assert_allclose(sum(parts), losses.ipo(*arguments, TAU), rtol=1e-5)


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


EVENLY = np.full(5, 0.2, np.float32)


def test_leave_one_out_subtracts_the_mean_of_the_others():
    rewards = _random(0, 5)
    others = [np.mean(np.delete(rewards, i)) for i in range(5)]
    np.testing.assert_allclose(losses.leave_one_out(rewards, EVENLY), rewards - others, atol=1e-6)


def test_leave_one_out_does_not_see_what_all_rewards_share():
    rewards = _random(0, 5)
    np.testing.assert_allclose(
        losses.leave_one_out(rewards + 7.0, EVENLY),
        losses.leave_one_out(rewards, EVENLY),
        atol=1e-5,
    )


def test_leave_one_out_does_not_see_rows_that_only_fill_the_batch_up():
    rewards = _random(0, 5)
    filled, weights = np.append(rewards, [100.0, -3.0]), np.append(EVENLY, [0, 0])
    found = losses.leave_one_out(filled.astype(np.float32), weights.astype(np.float32))
    np.testing.assert_allclose(found[:5], losses.leave_one_out(rewards, EVENLY), atol=1e-5)


def test_a_reward_without_others_is_no_advantage():
    found = losses.leave_one_out(np.array([3.0, 5.0]), np.array([1.0, 0.0]))
    assert found[0] == 0.0


def _one_off_shapes():
    """Every loss with one argument whose shape would broadcast."""
    per_token, per_row = np.ones((4, 3), np.float32), np.full(4, 0.25, np.float32)
    pair = np.ones((4, 2, 3), np.float32)
    calls = {
        "policy_gradient_sampled_kl": [per_token, per_token, per_row, per_token, per_row, TAU],
        "policy_gradient_exact_kl": [per_token, per_token, per_row, per_token, per_row, TAU],
        "ipo": [pair, pair, per_row, pair, per_row, TAU],
        "cross_entropy": [per_token, per_token],
        "preference_cross_entropy": [per_row, per_row, per_row],
        "leave_one_out": [per_row, per_row],
        "centred_preference": [per_row, per_row],
        "per_token_kl": [pair, pair],
    }
    for name, arguments in calls.items():
        for position, value in enumerate(arguments):
            if isinstance(value, np.ndarray):
                wrong = [*arguments[:position], value[:1], *arguments[position + 1 :]]
                yield pytest.param(name, wrong, id=f"{name}-{position}")


@pytest.mark.parametrize(("name", "arguments"), list(_one_off_shapes()))
def test_no_loss_broadcasts_a_wrong_shape(name, arguments):
    with pytest.raises(AssertionError, match="shape"):
        getattr(losses, name)(*arguments)
