"""Each policy learner's gradient is exactly that of its objective, by enumerating all responses.

Everything on the learner's side is its own code (`rows`, its scorer, `loss`) except the rollout:
in place of sampling, every pair (y, y') is rolled out once and its loss is weighted by the
probability that the players given to the rollout would have sampled it.
"""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax import losses
from nlhf_jax.learners import policy as policy_module
from nlhf_jax.opponents import POLICY
from nlhf_jax.raters import score_against
from nlhf_jax.studies.sequences import mixture_log_probs, responses
from tests import tiny

VOCABULARY, LENGTH, TAU = 4, 3, 0.1
FORMS = ("sampled", "exact")
INPUTS = np.asarray([3, 2, 3, 1], np.int32)
RESPONSES = responses(VOCABULARY, LENGTH)
COUNT = len(RESPONSES)
NETWORK = tiny.model(VOCABULARY)


@functools.cache
def _learner(kind, kl, rater="preference"):
    return tiny.policy_learner(NETWORK, kind, kl=kl, tau=TAU, scale=2.0, rater_kind=rater)


def _state(learner):
    """The first state, but with kept sets far from the policy, as after many steps."""
    state = learner.init()
    seeds = enumerate((name for name, value in state.kept.items() if value is not None), start=7)
    kept = {name: tiny.params(NETWORK, seed, scale=2.0) for seed, name in seeds}
    return state.replace(kept=state.kept | kept)


def _param_sets(learner):
    """The state, and the parameters of all that players are made of."""
    state = _state(learner)
    sets = {"reference": learner._frozen["reference"], "policy": state.params}
    return state, sets | state.kept


def _log_probs(player, sets):
    """log p of all responses `[N]`."""
    return _jitted_log_probs(tuple(player.items()), {name: sets[name] for name in player})


@functools.partial(jax.jit, static_argnums=0)
def _jitted_log_probs(player, sets):
    return mixture_log_probs(NETWORK, dict(player), sets, INPUTS, RESPONSES)


@functools.cache
def _exact_gradient(opponent, rater="preference"):
    """Of E[P(y > y')] (or E[r(y)]) - tau KL(policy, reference), with the opponent frozen."""
    learner = _learner(opponent, "exact", rater)
    state, sets = _param_sets(learner)
    if opponent == "rlhf":
        scores = _all_rewards(learner._frozen["scorer"])
    else:
        frozen = jnp.exp(_log_probs(tiny.OPPONENTS[opponent].weights, sets))
        scores = _all_preferences(learner._frozen["scorer"], rater) @ frozen
    return _gradient_of_objective(state.params, sets["reference"], scores)


def _exact_ipo_gradient(kind, frozen=True):
    """Of minus the expected IPO loss; the wrong one if the sampler is not frozen."""
    learner = _learner(kind, None)
    state, sets = _param_sets(learner)
    preferences = _all_preferences(learner._frozen["scorer"])
    return _gradient_of_ipo(tuple(learner._players[0].items()), frozen, sets, preferences)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gradient_of_ipo(sampler, frozen, sets, preferences):
    """Calandriello et al. 2024, as it stands there: a vote for y, and one for y'."""

    def value(params):
        log_probs = _log_probs(POLICY, {"policy": params})
        sampled = jnp.exp(_log_probs(dict(sampler), sets | {"policy": params}))
        sampled = jax.lax.stop_gradient(sampled) if frozen else sampled
        log_ratio = log_probs - _log_probs({"reference": 1.0}, sets)
        h = log_ratio[:, None] - log_ratio[None, :]
        gain = log_probs[:, None] - log_probs[None, :]
        for_y, for_other = -gain + TAU * h**2, gain + TAU * h**2
        loss = preferences * for_y + (1 - preferences) * for_other
        return -sampled @ loss @ sampled

    return jax.grad(value)(sets["policy"])


@jax.jit
@jax.grad
def _gradient_of_objective(params, reference_params, scores):
    log_probs = _log_probs(POLICY, {"policy": params})
    reference = _log_probs({"reference": 1.0}, {"reference": reference_params})
    return jnp.sum(jnp.exp(log_probs) * (scores - TAU * (log_probs - reference)))


@jax.jit
def _all_rewards(params):
    rater = _learner("rlhf", "exact")._scorer.rater
    return rater.reward(params, jnp.tile(INPUTS, (COUNT, 1)), RESPONSES)


@functools.partial(jax.jit, static_argnums=1)
def _all_preferences(params, kind="preference"):
    """P(y > y') for all responses: `[N, N]`."""
    rater = _learner("self_play", "exact", kind)._scorer.rater
    first, second = np.repeat(RESPONSES, COUNT, axis=0), np.tile(RESPONSES, (COUNT, 1))
    text = jnp.tile(INPUTS, (COUNT * COUNT, 1))
    return rater.probability(params, text, first, second, both_orders=False).reshape(COUNT, COUNT)


@functools.cache
def _unmodified_gradients(opponent):
    return _average_gradients(opponent)


def _average_gradients(opponent, rater="preference"):
    """Minus the gradients of the learners' losses, averaged over all (y, y'), by form of the KL.

    For a sampler or a relative it is the one gradient, which has no such forms.

    A batch is one prompt with y and y'; for RLHF, which has no y', it is the same prompt twice with
    a response of the policy each, so that each has the other as its baseline.
    """
    forms = FORMS if opponent in tiny.OPPONENTS else (None,)
    learners = [_learner(opponent, kl, rater) for kl in forms]
    rows_in_batch = 2 if opponent == "rlhf" else 1
    batch = {"inputs": jnp.tile(INPUTS, (rows_in_batch, 1))}

    def weighted_losses(params, state, frozen, y, other):
        """The loss of one batch under each learner, times the batch's probability."""
        probability = None

        def rollout(model, players, sets, contexts, key, max_length):
            nonlocal probability
            of_y, *of_other = (jnp.exp(_log_probs(player, sets)) for player in players)
            probability = of_y[y] * (of_other or [of_y])[0][other]
            pair = jnp.stack([jnp.asarray(RESPONSES)[y], jnp.asarray(RESPONSES)[other]])
            return pair.reshape(rows_in_batch, len(players), max_length)

        weighted = []
        for learner in learners:
            with mock.patch.object(policy_module, "rollout", rollout):
                rows, _ = learner.rows(state, frozen, batch)
            rows, share = jax.lax.stop_gradient((rows, probability))
            read = learner.loss_reads(state, frozen)
            weighted.append(share * learner.loss(params, read, rows)[0])
        return jnp.stack(weighted)

    def average_losses(params, state, frozen):
        everything = jnp.arange(COUNT)
        over_other = jax.vmap(weighted_losses, in_axes=(None, None, None, None, 0))
        over_both = jax.vmap(over_other, in_axes=(None, None, None, 0, None))
        return jnp.sum(over_both(params, state, frozen, everything, everything), axis=(0, 1))

    state = _state(learners[0])
    both = jax.jit(jax.jacrev(average_losses))(state.params, state, learners[0]._frozen)
    return {kl: jax.tree.map(lambda x, i=i: -x[i], both) for i, kl in enumerate(forms)}


def _relative_error(gradient, exact):
    gradient, exact = (_flat(tree) for tree in (gradient, exact))
    return np.linalg.norm(gradient - exact) / np.linalg.norm(exact)


def _flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


@pytest.mark.parametrize(
    "opponent",
    [
        pytest.param(
            name, marks=() if name in ("self_play", "nash_md", "rlhf") else pytest.mark.long
        )
        for name in tiny.OPPONENTS
    ],
)
def test_average_gradient_is_the_gradient_of_the_exact_objective(opponent):
    for kl, gradient in _average_gradients(opponent).items():
        assert _relative_error(gradient, _exact_gradient(opponent)) < 1e-4, kl


@pytest.mark.parametrize(
    "rater", ["embedding", pytest.param("antisymmetric", marks=pytest.mark.long)]
)
def test_it_is_so_for_every_kind_of_rater(rater):
    exact = _exact_gradient("nash_md", rater)
    for kl, gradient in _average_gradients("nash_md", rater).items():
        assert _relative_error(gradient, exact) < 1e-4, kl
    assert _relative_error(exact, _exact_gradient("nash_md")) > 1e-2


def test_without_the_reward_to_go_both_gradients_are_wrong(monkeypatch):
    monkeypatch.setattr(losses, "reward_to_go", lambda per_token: per_token)
    for kl, gradient in _average_gradients("nash_md").items():
        assert _relative_error(gradient, _exact_gradient("nash_md")) > 1e-2, kl


def test_the_opponents_have_different_gradients():
    gradients = [_exact_gradient(opponent) for opponent in tiny.OPPONENTS]
    for i, one in enumerate(gradients):
        for other in gradients[:i]:
            assert _relative_error(one, other) > 1e-2


@pytest.mark.parametrize("kind", tiny.SAMPLERS)
def test_average_ipo_gradient_is_that_of_the_expected_loss_with_the_sampler_frozen(kind):
    found = _unmodified_gradients(kind)[None]
    assert _relative_error(found, _exact_ipo_gradient(kind)) < 1e-4


@pytest.mark.parametrize("kind", ["online_ipo", "ipo_md"])
def test_a_gradient_through_the_sampling_would_be_another(kind):
    """Or else the test above could not tell."""
    through = _exact_ipo_gradient(kind, frozen=False)
    assert _relative_error(through, _exact_ipo_gradient(kind)) > 1e-2


def test_online_ipo_is_four_times_self_play():
    """Of the antisymmetric preference: each pair comes in both orders, equally often."""
    learner = _learner("self_play", "exact")
    state, sets = _param_sets(learner)
    asked_once = _all_preferences(learner._frozen["scorer"])
    scores = (asked_once + 1 - asked_once.T) / 2 @ jnp.exp(_log_probs(POLICY, sets))
    self_play = _gradient_of_objective(state.params, sets["reference"], scores)
    four_times = jax.tree.map(lambda x: 4 * x, self_play)
    assert _relative_error(_unmodified_gradients("online_ipo")[None], four_times) < 1e-4


def test_the_samplers_have_different_gradients():
    gradients = [_exact_ipo_gradient(kind) for kind in tiny.SAMPLERS]
    for i, one in enumerate(gradients):
        for other in gradients[:i]:
            assert _relative_error(one, other) > 1e-2


def test_probabilities_of_all_responses_sum_to_one():
    sets = {"policy": tiny.params(NETWORK, 1, 2.0), "reference": tiny.params(NETWORK, 2, 2.0)}
    for player in (POLICY, tiny.OPPONENTS["nash_md"].weights):
        total = jnp.sum(jnp.exp(_log_probs(player, sets)))
        np.testing.assert_allclose(total, 1.0, atol=1e-5)


# --- several responses of the opponent -----------------------------------------------------------


@functools.cache
def _against(count, rater="embedding"):
    """A learner whose y is compared with `count` responses, and its jitted rows."""
    learner = tiny.policy_learner(
        NETWORK, "nash_md", kl="exact", tau=TAU, scale=2.0, rater_kind=rater, samples=count
    )
    return learner, jax.jit(learner.rows)


@pytest.mark.parametrize("rater", ["preference", "embedding", "antisymmetric"])
def test_the_score_is_the_mean_over_the_opponent_s_responses(rater):
    """Each kind asks in its own way; one by one it is the same."""
    learner, _ = _against(3, rater)
    scorer, params = learner._scorer, learner._frozen["scorer"]
    text, y = np.tile(INPUTS, (5, 1)), RESPONSES[:5]
    others = np.stack([RESPONSES[shift : shift + 5] for shift in (3, 7, 11)], axis=1)
    one_by_one = [jax.jit(scorer.score)(params, text, y, others[:, n]) for n in range(3)]
    found, _ = jax.jit(score_against, static_argnums=0)(scorer, params, text, y, others)
    np.testing.assert_allclose(found, np.mean(one_by_one, axis=0), atol=1e-5)
    assert np.std(one_by_one, axis=0).max() > 1e-3


def test_a_scorer_of_one_s_own_is_asked_about_each():
    class Longer:
        measures, pairwise = "longer", True

        def score(self, params, text, y, other):
            return (jnp.sum(y > 0, axis=1) > jnp.sum(other > 0, axis=1)).astype(jnp.float32)

    y = np.array([[2, 1, 0], [2, 2, 1]], np.int32)
    others = np.array([[[1, 0, 0], [2, 2, 1]], [[1, 0, 0], [2, 1, 0]]], np.int32)
    found, more = score_against(Longer(), {}, np.ones((2, 1), np.int32), y, others)
    np.testing.assert_allclose(found, [0.5, 1.0])
    assert more == {}


def test_more_responses_of_the_opponent_leave_less_variance():
    """Of the advantage given y: its part that is the opponent's falls as 1 / K."""
    batch = {"inputs": jnp.tile(INPUTS, (64, 1))}

    def spread(count):
        learner, rows = _against(count)
        state, preferences = (
            _state(learner),
            _all_preferences(learner._frozen["scorer"], "embedding"),
        )
        _, sets = _param_sets(learner)
        frozen = jnp.exp(_log_probs(tiny.OPPONENTS["nash_md"].weights, sets))
        exact = np.asarray(preferences @ frozen) - 0.5
        index = {row.tobytes(): number for number, row in enumerate(RESPONSES)}
        left = []
        for step in range(6):
            state = state.replace(step=jnp.int32(step))
            found, _ = rows(state, learner._frozen, batch)
            y = [index[row.tobytes()] for row in np.asarray(found["responses"][:, 0])]
            left.extend(np.asarray(found["targets"]) - exact[y])
        return np.mean(np.square(left)), np.mean(left), np.std(left) / np.sqrt(len(left))

    (one, bias, error), (eight, *_) = spread(1), spread(8)
    assert abs(bias) < 4 * error
    assert one / eight == pytest.approx(8, rel=0.3)
