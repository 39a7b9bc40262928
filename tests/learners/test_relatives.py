"""Learners from other papers: the gradient is that of what is written there, by enumeration.

As in `test_policy_gradient`, whose machinery this is; the losses are written out here once more,
as their papers have them: with votes, not preferences, and per pair.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax import objectives, opponents
from nlhf_jax.errors import UserError
from nlhf_jax.opponents import POLICY
from tests import tiny
from tests.learners.test_policy_gradient import (
    NETWORK,
    TAU,
    _all_preferences,
    _average_gradients,
    _gradient_of_objective,
    _learner,
    _log_probs,
    _param_sets,
    _relative_error,
)

ETA, SHARE = 3 * TAU, 1 / 3  # of INPO; its share is tau / eta
AHEAD = tiny.params(NETWORK, 11, scale=2.0)


def _votes(h, preferences):
    """A squared loss of a pair's vote, which is y's with the probability that it is preferred."""
    margin = 1 / (2 * ETA)
    return ETA * (preferences * (h - margin) ** 2 + (1 - preferences) * (h + margin) ** 2)


def _pairs(log_ratio):
    return log_ratio[:, None] - log_ratio[None, :]


def _inpo(log_probs, of, preferences):
    h = _pairs(log_probs - SHARE * of["reference"] - (1 - SHARE) * of["previous"])
    return _votes(h, preferences)


def _comal(log_probs, of, preferences):
    return _inpo(log_probs, of | {"reference": of["magnet"]}, preferences)


def _mnpo(log_probs, of, preferences):
    past = (of["past_0"] + of["past_1"]) / 2
    return _votes(_pairs(log_probs - 0.4 * of["reference"] - 0.6 * past), preferences)


def _online_dpo(log_probs, of, preferences):
    logit = TAU * _pairs(log_probs - of["reference"])
    for_y, for_other = jnp.log(jax.nn.sigmoid(logit)), jnp.log(jax.nn.sigmoid(-logit))
    return -preferences * for_y - (1 - preferences) * for_other


def _sppo(log_probs, of, preferences):
    log_ratio, eta = log_probs - of["previous"], 1 / TAU
    of_y = (log_ratio[:, None] - eta * (preferences - 0.5)) ** 2
    of_other = (log_ratio[None, :] - eta * (1 - preferences - 0.5)) ** 2
    return (of_y + of_other) / (4 * eta)


# Of pairs: who writes them, and what a pair costs.
LOSSES = {
    "online_dpo": ("policy", _online_dpo),
    "sppo": ("previous", _sppo),
    "inpo": ("previous", _inpo),
    "comal": ("previous", _comal),
    "mnpo": ("policy", _mnpo),
}


@functools.cache
def _exact(kind):
    """Minus the gradient of the expected loss of a pair."""
    learner = _learner(kind, None)
    state, sets = _param_sets(learner)
    preferences = _all_preferences(learner._frozen["scorer"])
    of = {name: _log_probs({name: 1.0}, sets) for name, each in sets.items() if each is not None}
    if kind == "egpo":
        scores = preferences @ jnp.exp(_log_probs({"ahead": 1.0}, {"ahead": AHEAD}))
        return _gradient_of_objective(state.params, sets["reference"], scores)
    if kind == "mpo":
        scores = preferences @ jnp.exp(of["policy"])
        return _gradient_of_objective(state.params, sets["magnet"], scores)
    writer, loss = LOSSES[kind]
    written = jnp.exp(of[writer])

    @jax.jit
    @jax.grad
    def gradient(params):
        found = loss(_log_probs(POLICY, {"policy": params}), of, preferences)
        return -written @ found @ written

    return gradient(state.params)


LONG = ("mpo", "comal", "mnpo")  # other sets in the same programs


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.long if k in LONG else ()) for k in tiny.RELATIVES],
)
def test_the_average_gradient_is_the_one_of_the_paper(kind, monkeypatch):
    learner = _learner(kind, None, "preference")
    if kind == "egpo":  # What it looks at is one random step ahead; here it is anything.
        monkeypatch.setattr(learner, "_look_ahead", lambda state, frozen, batch: AHEAD)
    assert _relative_error(_average_gradients(kind)[None], _exact(kind)) < 1e-4


def test_no_two_of_them_have_the_same_gradient():
    gradients = [_exact(kind) for kind in tiny.RELATIVES]
    for i, one in enumerate(gradients):
        for other in gradients[:i]:
            assert _relative_error(one, other) > 1e-2


def test_a_look_ahead_is_a_step_of_self_play():
    """With the same samples, since both play with the key of the rollout."""
    egpo, self_play = tiny.learner("egpo"), tiny.learner("self_play", kl="exact")
    batch = egpo.partitioner.place_batch(tiny.batch("egpo", 0))
    ahead = jax.jit(egpo._look_ahead)(egpo.init(), egpo._frozen, batch)
    stepped, _ = self_play.train_step(self_play.init(), batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ahead, stepped.params)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), ahead, egpo.init().params)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_with_several_opponent_s_responses_sppo_learns_from_the_first_alone():
    """And its win rate is the mean over them."""
    two, one = objectives.sppo(2.0), objectives.sppo(2.0, 4)
    scorer = _learner("sppo", None)._scorer
    assert (two.learned, len(two.players({"previous": 1.0}, scorer))) == (2, 2)
    assert (one.learned, len(one.players({"previous": 1.0}, scorer))) == (1, 5)


# --- what an opponent keeps ----------------------------------------------------------------------


def _history(opponent, steps):
    """Each kept set after each step of a policy that is the number of steps taken."""
    kept, found = dict.fromkeys(opponent.keeps, {"w": 0}), []
    for step in range(1, steps + 1):
        kept = {n: follow(kept[n], {"w": step}, step) for n, follow in opponent.keeps.items()}
        found.append({name: int(each["w"]) for name, each in kept.items()})
    return found


def test_the_previous_policy_is_copied_every_period():
    history = _history(opponents.previous(3), 7)
    assert [each["previous"] for each in history] == [0, 0, 3, 3, 3, 6, 6]


def test_a_magnet_moves_at_its_own_period():
    history = _history(opponents.previous(2, 4), 8)
    assert [each["magnet"] for each in history] == [0, 0, 0, 4, 4, 4, 4, 8]
    assert [each["magnet"] for each in _history(opponents.magnetic(4), 8)] == [
        each["magnet"] for each in history
    ]


def test_of_past_policies_there_are_the_last_ones():
    history = _history(opponents.past(3, 2), 12)
    assert sorted(history[-1].values()) == [8, 10, 12]
    assert sorted(history[6].values()) == [2, 4, 6]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: opponents.previous(0), "PREVIOUS_PERIOD is 0 but must be a number of steps"),
        (lambda: opponents.magnetic(0.5), "MAGNET_PERIOD is 0.5 but must be"),
        (lambda: opponents.past(0, 1), "PAST is 0 but must be a number of policies"),
        (lambda: objectives.mnpo(0.1, 1.5, 2), "SHARE is 1.5 but must be in"),
    ],
)
def test_what_is_out_of_range_is_named(make, said):
    with pytest.raises(UserError, match=said):
        make()


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (objectives.inpo(0.1, 0.3), "measures from the parameter set 'previous' but the opponent"),
        (objectives.sppo(1.0), "measures from the parameter set 'previous'"),
        (objectives.policy_gradient(0.1, "exact", 1, "magnet"), "the parameter set 'magnet'"),
        (objectives.inpo(0.3, 0.1), "ETA is 0.1 but must be positive and at least TAU, 0.3"),
        (objectives.inpo(0.1, 0.0), "ETA is 0.0 but must be positive"),
        (objectives.sppo(0.0), "ETA is 0.0 but SPPO needs it positive"),
        (objectives.dpo(0.0), "TAU is 0.0 but DPO needs it positive"),
    ],
)
def test_an_objective_says_what_it_lacks(objective, said):
    with pytest.raises(UserError, match=said):
        tiny.learner("self_play", objective=objective)
