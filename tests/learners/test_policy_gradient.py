"""The learner's gradient is the exact gradient of its objective, by enumerating all responses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax import losses
from nlhf_jax.opponents import POLICY
from tests import tiny

VOCABULARY, LENGTH, TAU = 4, 3, 0.3
INPUTS = np.asarray([3, 2, 3, 1], np.int32)
RESPONSES = tiny.responses(VOCABULARY, LENGTH)


def _param_sets(learner, state):
    return {
        "policy": state.params,
        "reference": learner._frozen["reference"],
        # Far from the policy, as after many steps, so that a mix-up shows.
        "average": tiny.params(learner.model, 7, scale=2.0),
    }


def _log_probs(learner, player, sets):
    return tiny.mixture_log_probs(learner.model, player, sets, INPUTS, RESPONSES)


def _exact_gradient(learner, state, opponent: str):
    """jax.grad of E[P(y > y')] (or E[r(y)]) - tau KL(policy, reference), opponent frozen."""
    sets = _param_sets(learner, state)
    reference = _log_probs(learner, {"reference": 1.0}, sets)
    scores = _scores(learner, opponent)
    if opponent != "rlhf":
        player = tiny.OPPONENTS[opponent]
        frozen = jnp.exp(jax.lax.stop_gradient(_log_probs(learner, player, sets)))
        scores = scores @ frozen

    def objective(params):
        log_probs = _log_probs(learner, POLICY, sets | {"policy": params})
        return jnp.sum(jnp.exp(log_probs) * (scores - TAU * (log_probs - reference)))

    return jax.jit(jax.grad(objective))(state.params)


def _scores(learner, opponent):
    """The rater's answer on all responses `[N]` (RLHF) or all pairs of them `[N, N]`."""
    rater, params = learner._scorer.rater, learner._frozen["scorer"]
    count = len(RESPONSES)
    if opponent == "rlhf":
        return rater.reward(params, jnp.tile(INPUTS, (count, 1)), RESPONSES)
    first = np.repeat(RESPONSES, count, axis=0)
    second = np.tile(RESPONSES, (count, 1))
    text = jnp.tile(INPUTS, (count * count, 1))
    answers = jax.jit(lambda p: rater.probability(p, text, first, second, both_orders=False))
    return answers(params).reshape(count, count)


def _average_gradient(learner, state, opponent: str):
    """The learner's own gradient, averaged over all (y, y') with their probabilities.

    For RLHF the second response is the other row of a batch of two, whose reward is the baseline.
    """
    sets = _param_sets(learner, state)
    player = tiny.OPPONENTS[opponent] or POLICY
    y = np.repeat(np.arange(len(RESPONSES)), len(RESPONSES))
    other = np.tile(np.arange(len(RESPONSES)), len(RESPONSES))
    share = jnp.exp(_log_probs(learner, POLICY, sets)[y] + _log_probs(learner, player, sets)[other])
    scores = _scores(learner, opponent)
    if opponent == "rlhf":
        advantages = jax.vmap(losses.leave_one_out_advantage)(
            jnp.stack([scores[y], scores[other]], axis=1)
        )[:, 0]
    else:
        advantages, _ = learner._scorer.advantages(
            learner._frozen["scorer"], jnp.tile(INPUTS, (len(y), 1)), RESPONSES[y], RESPONSES[other]
        )
    rows = {
        "inputs": jnp.tile(INPUTS, (len(y), 1)),
        "responses": RESPONSES[y],
        "advantages": advantages,
        "share": share,
    }
    gradient = jax.jit(jax.grad(lambda p: learner.loss(p, learner._frozen, rows)[0]))
    return jax.tree.map(jnp.negative, gradient(state.params))


def _relative_error(gradient, exact):
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])  # noqa: E731
    return np.linalg.norm(flat(gradient) - flat(exact)) / np.linalg.norm(flat(exact))


@pytest.mark.parametrize("kl", ["sampled", "exact"])
@pytest.mark.parametrize("opponent", tiny.OPPONENTS)
def test_average_gradient_is_the_gradient_of_the_exact_objective(opponent, kl):
    learner = tiny.policy_learner(tiny.model(VOCABULARY), opponent, kl=kl, tau=TAU, scale=2.0)
    state = learner.init()
    exact = _exact_gradient(learner, state, opponent)
    assert _relative_error(_average_gradient(learner, state, opponent), exact) < 1e-4


@pytest.mark.parametrize("kl", ["sampled", "exact"])
def test_without_the_reward_to_go_the_gradient_is_wrong(kl, monkeypatch):
    learner = tiny.policy_learner(tiny.model(VOCABULARY), "nash_md", kl=kl, tau=TAU, scale=2.0)
    state = learner.init()
    exact = _exact_gradient(learner, state, "nash_md")
    monkeypatch.setattr(losses, "reward_to_go", lambda per_token: per_token)
    assert _relative_error(_average_gradient(learner, state, "nash_md"), exact) > 1e-2


def test_probabilities_of_all_responses_sum_to_one():
    learner = tiny.policy_learner(tiny.model(VOCABULARY), "nash_md", scale=2.0)
    sets = _param_sets(learner, learner.init())
    for player in ({"policy": 1.0}, {"policy": 0.7, "reference": 0.3}):
        total = jnp.sum(jnp.exp(_log_probs(learner, player, sets)))
        np.testing.assert_allclose(total, 1.0, atol=1e-5)
