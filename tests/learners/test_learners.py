"""What the learners promise beside their gradients: evaluation, averages, randomness, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from nlhf_jax.errors import UserError
from nlhf_jax.learners import policy as policy_module
from nlhf_jax.learners.policy import PolicyLearner
from nlhf_jax.learners.state import Purpose, key_for
from nlhf_jax.learners.votes import vote_accuracy
from nlhf_jax.objectives import ipo, policy_gradient
from nlhf_jax.opponents import Opponent, moving_average, self_play
from nlhf_jax.raters import PreferenceScorer, RewardScorer
from tests import tiny

NETWORK = tiny.model(tiny.RATER_VOCABULARY)
VALID = 5


@functools.cache
def _evaluated(kind, filling):
    """Metrics of five examples in a batch of eight that is filled up in one way or another."""
    learner = _learner(kind)
    batch = {
        name: np.concatenate([array[:VALID], tiny.batch(kind, filling)[name][VALID:]])
        for name, array in tiny.batch(kind, 0).items()
    }
    batch["valid"] = (np.arange(8) < VALID).astype(np.float32)
    return jax.device_get(learner.eval_step(learner.init(), learner.partitioner.place_batch(batch)))


@functools.cache
def _learner(kind):
    return tiny.learner(kind)


@pytest.mark.parametrize("kind", ["supervised", "preference", "reward", "nash_md", "ipo_md"])
def test_evaluation_does_not_see_rows_that_only_fill_the_batch_up(kind):
    one, other = _evaluated(kind, filling=1), _evaluated(kind, filling=2)
    assert "loss" in one and one["examples"] == VALID
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=1e-5, err_msg=name)


def test_supervised_loss_is_the_mean_over_target_tokens():
    batch = {name: array[:VALID] for name, array in tiny.batch("supervised", 0).items()}
    params = tiny.params(NETWORK, 1)
    forward = jax.jit(lambda p: NETWORK.logits(p, NETWORK.encode(p, batch["inputs"]), targets))
    targets = batch["targets"]
    scores = special.log_softmax(np.asarray(forward(params)), axis=-1)
    chosen = np.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
    found = _evaluated("supervised", filling=1)
    np.testing.assert_allclose(found["loss"], -chosen[targets > 0].mean(), rtol=1e-4)
    correct = (scores.argmax(axis=-1) == targets)[targets > 0].mean()
    np.testing.assert_allclose(found["token_accuracy"], correct, rtol=1e-4)


def test_preference_metrics_are_means_over_both_orders():
    learner = _learner("preference")
    batch = {name: array[:VALID] for name, array in tiny.batch("preference", 0).items()}
    ask = jax.jit(functools.partial(learner.rater.probability, both_orders=False))
    pair = batch["chosen"], batch["rejected"]
    params = tiny.params(NETWORK, 1)
    first = np.asarray(ask(params, batch["text"], *pair))
    second = 1 - np.asarray(ask(params, batch["text"], *pair[::-1]))
    found = _evaluated("preference", filling=1)
    vote = batch["vote_share"]
    loss = -np.mean([vote * np.log(p) + (1 - vote) * np.log(1 - p) for p in (first, second)])
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-4)
    np.testing.assert_allclose(found["order_bias"], np.mean(first - second), atol=1e-5)
    np.testing.assert_allclose(found["inconsistency"], np.mean(np.abs(first - second)), atol=1e-5)
    right = np.where(first + second > 1, vote, 1 - vote)
    np.testing.assert_allclose(found["accuracy"], right.mean(), rtol=1e-5)


def test_accuracy_is_the_share_of_the_votes_that_are_predicted():
    margin, weight = jnp.asarray([2.0, -2.0, 0.0]), jnp.asarray([0.75, 0.75, 1.0])
    np.testing.assert_allclose(vote_accuracy(margin, weight), [0.75, 0.25, 0.5])


def test_the_moving_average_follows_the_parameters():
    """avg_t = 0.9 avg_{t-1} + 0.1 theta_t, from where training starts."""
    learner = _learner("nash_ema")
    start = learner.init()
    jax.tree.map(np.testing.assert_array_equal, start.kept["average"], start.params)
    moved = start.replace(params=jax.tree.map(lambda x: x + 1.0, start.params))
    after = learner.follow(moved)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y + 0.1, atol=1e-5),
        after.kept["average"],
        start.params,
    )
    jax.tree.map(np.testing.assert_array_equal, after.params, moved.params)


def test_ipo_does_not_see_which_response_of_a_pair_comes_first():
    """P(y' > y) is 1 - P(y > y'). In expectation over pairs a wrong offset would only be noise."""
    learner, rng = _learner("ipo_md"), np.random.default_rng(0)
    rows = {
        "inputs": tiny.texts(rng, 8, 5),
        "responses": np.stack([tiny.texts(rng, 8, 3), tiny.texts(rng, 8, 3)], axis=1),
        "targets": rng.uniform(0, 1, 8).astype(np.float32),
        "row_weights": np.full(8, 1 / 8, np.float32),
    }
    context = learner.model.encode(learner._frozen["reference"], rows["inputs"])
    rows["contexts"] = {"reference": context}
    turned = rows | {"responses": rows["responses"][:, ::-1], "targets": 1 - rows["targets"]}
    loss = jax.jit(lambda rows: learner.loss(learner.init().params, learner._frozen, rows)[0])
    assert abs(loss(rows)) > 1e-2
    np.testing.assert_allclose(loss(rows), loss(turned), rtol=1e-5)


def test_randomness_differs_by_seed_step_and_purpose():
    settings = [(0, 0, Purpose.ROLLOUT), (0, 1, Purpose.ROLLOUT), (1, 0, Purpose.ROLLOUT)]
    settings += [(0, 0, Purpose.INIT), (0, 0, Purpose.EVALUATION)]
    keys = [
        tuple(jax.random.key_data(key_for(jax.random.key(seed), *rest)).tolist())
        for seed, *rest in settings
    ]
    assert len(set(keys)) == len(keys)


def test_seeds_share_a_program_and_draw_what_their_own_would():
    """The key is an argument, so that no seed is compiled twice; as a constant it says the same."""
    learners = [tiny.learner("nash_md", seed=seed) for seed in (0, 1)]
    batch = learners[0].partitioner.place_batch(tiny.batch("nash_md", 0))
    programs = [
        learner._jitted_train_step.lower(
            learner.abstract_state(), learner._frozen, batch, learner.key
        ).as_text()
        for learner in learners
    ]
    assert programs[0] == programs[1]
    after = []
    for learner in learners:
        found = learner.train_step(learner.init(), batch)[0].params
        constant = learner._jitted_train_step(learner.init(), learner._frozen, batch)[0].params
        jax.tree.map(np.testing.assert_array_equal, found, constant)
        after.append(found)
    leaves = [jax.tree.leaves(params) for params in after]
    assert any((one != other).any() for one, other in zip(*leaves, strict=True))


def test_a_key_that_is_first_asked_for_in_a_callers_trace_is_an_array():
    """A learner keeps its key, and whoever jits what calls it must not find a tracer kept."""
    learner = tiny.learner("nash_md")
    batch = tiny.batch("nash_md", 0)

    def rows():  # Leaves: a pullback of another trace has a structure of its own.
        return jax.jit(lambda s: jax.tree.leaves(learner.rows(s, learner._frozen, batch)[0]))

    read = rows()
    first, again = (jax.tree.map(np.asarray, read(learner.init())) for _ in range(2))
    assert not isinstance(learner.key, jax.core.Tracer)
    alone = rows()(learner.init())
    jax.tree.map(np.testing.assert_array_equal, first, again)
    jax.tree.map(np.testing.assert_array_equal, first, alone)


def test_a_batch_that_micro_batches_do_not_divide_is_an_error():
    learner = tiny.learner("supervised", microbatches=3)
    with pytest.raises(UserError, match="MICROBATCHES is 3 but must divide the batch size 8"):
        learner.train_step(None, tiny.batch("supervised", 0))


def test_rlhf_is_evaluated_on_the_loss_that_it_is_trained_on(monkeypatch):
    """On the same responses the two losses are the same number, or their curves cannot be read."""
    responses = tiny.texts(np.random.default_rng(0), 16, 3).reshape(8, 2, 3)

    def rollout(model, players, *rest):
        return jnp.asarray(responses[:, : len(players)])

    monkeypatch.setattr(policy_module, "rollout", rollout)
    learner = tiny.learner("rlhf")
    batch = learner.partitioner.place_batch(tiny.batch("rlhf", 0))
    valid = {"valid": np.ones(8, np.float32)}
    evaluated = learner.eval_step(learner.init(), batch | learner.partitioner.place_batch(valid))
    _, trained = learner.train_step(learner.init(), batch)
    for name in ("loss", "reward", "advantage_squared", "kl"):
        np.testing.assert_allclose(evaluated[name], trained[name], rtol=1e-5, err_msg=name)


PREFERENCES = PreferenceScorer(None, both_orders=False)


@pytest.mark.parametrize(
    ("objective", "opponent", "scorer", "message"),
    [
        (policy_gradient(0.1, "forward"), self_play(), PREFERENCES, "KL is 'forward' but must be"),
        (policy_gradient(0.1, None), self_play(), PREFERENCES, "KL is None but must be 'sampled'"),
        (policy_gradient(-0.1, "exact"), self_play(), PREFERENCES, "TAU is -0.1 but must not be"),
        (policy_gradient(0.1, "exact"), None, PREFERENCES, "the scorer compares two responses"),
        (ipo(0.0), self_play(), PREFERENCES, "TAU is 0.0 but IPO needs it positive"),
        (ipo(0.1), None, PREFERENCES, "learns from preferences, but RLHF has"),
        (ipo(0.1), self_play(), RewardScorer(None), "and a preference model"),
        (
            policy_gradient(0.1, "exact"),
            moving_average(),
            PREFERENCES,
            "AVERAGE_DECAY is None but a moving-average opponent needs it",
        ),
        (
            policy_gradient(0.1, "exact"),
            moving_average(1.5),
            PREFERENCES,
            "AVERAGE_DECAY is 1.5 but a moving-average opponent needs it",
        ),
        (
            policy_gradient(0.1, "exact"),
            Opponent({"half": 1.0}, {"half": lambda kept, params, step: {}}),
            PREFERENCES,
            "parameter set 'half' changes its shapes",
        ),
    ],
)
def test_a_policy_learner_refuses_settings_without_a_meaning(objective, opponent, scorer, message):
    with pytest.raises(UserError, match=message):
        PolicyLearner(
            model=NETWORK,
            partitioner=tiny.one_device(),
            optimizer=tiny.optimizer(),
            seed=0,
            objective=objective,
            opponent=opponent,
            scorer=scorer,
            reference_params=None,
            scorer_params=None,
            max_response_length=3,
        )
