"""Several raters as one: their mean, the spread that is taken off, and who may be together."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.special import expit

from nlhf_jax import objectives, opponents
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.judges import EnsembleJudge, PopulationJudge
from nlhf_jax.jobs import builders
from nlhf_jax.raters import EnsembleScorer, PreferenceScorer, RewardScorer
from tests import tiny
from tests.checkpoints.interop import tiny_checkpoints
from tests.checkpoints.interop.tiny_checkpoints import LENGTHS, write_ours

NETWORK = tiny.model(tiny.RATER_VOCABULARY)
PARAMS = tuple(tiny.params(NETWORK, seed, scale=8.0) for seed in (3, 4, 5))
KINDS = ("preference", "embedding", "antisymmetric")
RATERS = tuple(map(tiny.rater, KINDS))
RNG = np.random.default_rng(0)
TEXT, FIRST, SECOND = (tiny.texts(RNG, 8, length) for length in (5, 4, 4))


def ensemble(pessimism: float) -> EnsembleScorer:
    return EnsembleScorer(tuple(PreferenceScorer(one, True) for one in RATERS), pessimism)


def by_hand() -> np.ndarray:
    found = []
    for rater, params in zip(RATERS, PARAMS, strict=True):
        forward, backward = jax.jit(rater.both_orders)(params, TEXT, FIRST, SECOND)
        found.append((expit(np.asarray(forward)) + expit(-np.asarray(backward))) / 2)
    return np.array(found)


@pytest.mark.parametrize("pessimism", [0.0, 1.5])
def test_the_score_is_the_mean_less_a_multiple_of_the_spread(pessimism):
    scorer = ensemble(pessimism)
    score, more = jax.jit(scorer.score_and_more)(PARAMS, TEXT, FIRST, SECOND)
    expected = by_hand()
    spread = np.sqrt(np.mean((expected - expected.mean(axis=0)) ** 2, axis=0))
    assert np.max(spread) > 0.05
    np.testing.assert_allclose(score, expected.mean(axis=0) - pessimism * spread, atol=1e-5)
    np.testing.assert_allclose(more["rater_spread"], spread, atol=1e-5)
    # An evaluation asks what is believed, not what is dared.
    win_rate = jax.jit(scorer.win_rate)(PARAMS, TEXT, FIRST, SECOND)
    np.testing.assert_allclose(win_rate, expected.mean(axis=0), atol=1e-5)
    assert scorer.pairwise and scorer.measures == "preference"


def test_rewards_have_a_mean_and_no_spread():
    members = tuple(RewardScorer(tiny.rater("reward")) for _ in range(2))
    scorer = EnsembleScorer(members)
    found = jax.jit(lambda params: scorer.score(params, TEXT, FIRST, None))(PARAMS[:2])
    alone = [jax.jit(members[0].rater.reward)(params, TEXT, FIRST) for params in PARAMS[:2]]
    np.testing.assert_allclose(found, np.mean(alone, axis=0), atol=1e-5)
    assert not scorer.pairwise
    with pytest.raises(UserError, match="PESSIMISM is 1.0 but rewards have no common zero"):
        EnsembleScorer(members, 1.0)


def test_who_cannot_rate_together():
    pair, reward = PreferenceScorer(RATERS[0], True), RewardScorer(tiny.rater("reward"))
    with pytest.raises(UserError, match="all rate pairs, or all one response"):
        EnsembleScorer((pair, reward))
    with pytest.raises(UserError, match="PESSIMISM is -1 but must be at least 0"):
        EnsembleScorer((pair, pair), -1)


def test_judges_together_are_their_mean():
    members = [PopulationJudge(lambda *t, p=p: np.full(2, p)) for p in (0.25, 0.75, 0.8)]
    judge = EnsembleJudge(members)
    np.testing.assert_allclose(judge.compare(["x"] * 2, ["y"] * 2, ["z"] * 2), 0.6)
    assert judge.name == "mean of 3 raters"


# --- from checkpoints ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """An SFT policy, and a rater of each pairwise kind, as their trainings leave them."""
    place, network = tmp_path_factory.mktemp("stages"), tiny_checkpoints.model()
    data = tiny_checkpoints.data()
    write_ours(place / "sft", network, tiny.params(network, 1))
    pair = {
        "rater_template": data.rater.segments,
        "rater_labels": data.vocabulary.rater_labels(),
    }
    said = {
        "preference": pair,
        "embedding": {"rater_settings": {"cyclic": 2}},
        "antisymmetric": pair
        | {
            "rater_settings": {
                "reward_template": [
                    list(s) if isinstance(s, tuple) else s for s in data.reward.segments
                ]
            }
        },  # fmt: skip
    }
    for seed, (kind, described) in enumerate(said.items(), start=2):
        params = tiny.params(network, seed, scale=20.0)
        lengths = {"feature_lengths": {"text": 12, "summary": 5}}
        write_ours(place / kind, network, params, kind=kind, **lengths, **described)
    return place


def policy(stages, raters, **settings):
    setup = builders.Setup(
        tiny_checkpoints.data(), LENGTHS, tiny.one_device(), tiny.optimizer(), 0, microbatches=1
    )
    learner = builders.policy(
        setup,
        initial_checkpoint=str(stages / "sft"),
        rater_checkpoint=raters,
        opponent=opponents.geometric_mixture(0.3),
        objective=objectives.policy_gradient(0.1, "exact"),
        both_orders=True,
        frozen_dtype="float32",
        compute_dtype=None,
        scan_layers=None,
        **settings,
    )
    return setup, learner


def test_a_policy_learns_from_several_raters_and_says_which(stages):
    paths = [str(stages / kind) for kind in KINDS]
    setup, learner = policy(stages, paths, pessimism=0.5)
    rows = {"inputs": tiny.texts(np.random.default_rng(0), 8, 12)}
    _, metrics = learner.train_step(learner.init(), learner.partitioner.place_batch(rows))
    assert np.isfinite(metrics["loss"]) and metrics["rater_spread"] > 0
    assert [setup.checkpoints[f"rater_checkpoint_{n}"][0] for n in (1, 2, 3)] == paths
    said = learner.trained_against()
    assert [said["path"], *(one["path"] for one in said["others"])] == [
        setup.checkpoints[f"rater_checkpoint_{n}"][1] for n in (1, 2, 3)
    ]
    # Each of them is known again as a rater of what was trained so.
    trained = dataclasses.replace(
        setup.open_network(paths[0], setup.partitioner, setup.data),
        description={"kind": "policy", "trained_against": said},
    )
    for path in paths:
        assert setup.open_network(path, setup.partitioner, setup.data).is_rater_of(trained)
    other = setup.open_network(str(stages / "sft"), setup.partitioner, setup.data)
    assert not other.is_rater_of(trained)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_rates_alone(stages, kind):
    _, learner = policy(stages, str(stages / kind))
    rater = learner._scorer.rater
    assert rater.kind == kind
    if kind == "embedding":
        assert rater.cyclic == 2


def test_what_does_not_go_together_is_one_sentence(stages):
    alone = str(stages / "preference")
    with pytest.raises(UserError, match="PESSIMISM is 0.5 but there is one rater"):
        policy(stages, alone, pessimism=0.5)
    with pytest.raises(UserError, match="SCORER makes a scorer of one network"):
        policy(stages, [alone, alone], scorer=lambda network: None)
    with pytest.raises(UserError, match="is a supervised model but this opponent needs a pref"):
        policy(stages, [alone, str(stages / "sft")])
