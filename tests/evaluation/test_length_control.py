"""Win rates at equal length, against AlpacaEval's own program where it is installed."""

import numpy as np
import pytest
from scipy import optimize
from scipy.special import expit, logit

from nlhf_jax.evaluation import intervals
from nlhf_jax.evaluation.length_control import (
    fit,
    influences,
    length_controlled,
    relative_lengths,
)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 200)


def lengths_of(n: int, players: int, seed: int = 0) -> np.ndarray:
    """Characters, every player more talkative than the one before."""
    rng = np.random.default_rng(seed)
    return np.round(rng.normal(120 + 40 * np.linspace(0, 1, players), 40, (n, players))).clip(1)


def scores_of(quality: np.ndarray, votes: bool, seed: int = 0) -> np.ndarray:
    """`[N, K, K]` of a judge who prefers by `quality [N, K]`, in log-odds."""
    return as_asked(expit(quality[:, :, None] - quality[:, None, :]), votes, seed)


def as_asked(scores: np.ndarray, votes: bool, seed: int = 0) -> np.ndarray:
    """Preferences as they are, or a vote drawn from each."""
    if not votes:
        return scores
    upper = np.triu(np.random.default_rng(seed).random(scores.shape) < scores, k=1)
    return upper + np.tril(1 - np.swapaxes(upper, 1, 2), k=-1) + np.eye(scores.shape[1]) / 2


@pytest.mark.parametrize("players", [2, 5])
@pytest.mark.parametrize("votes", [False, True])
def test_under_a_judge_that_likes_length_only_all_are_equal_at_equal_length(players, votes):
    lengths = lengths_of(2000, players)
    longer = relative_lengths(lengths[:, :, None], lengths[:, None, :])
    scores = as_asked(expit(1.5 * longer), votes)
    rates, _ = length_controlled("abcde"[:players], scores, lengths, seed=0)
    assert scores[:, -1, 0].mean() > 0.59
    np.testing.assert_allclose(rates.rate, 0.5, atol=0.06 if votes else 1e-4)
    if votes:  # what is left is chance, and the intervals say so
        assert np.mean((rates.low <= 0.5) & (rates.high >= 0.5)) > 0.85


def test_nor_does_it_matter_much_how_it_likes_length():
    lengths = lengths_of(2000, 2)
    for shape in (lengths / 40, np.sqrt(lengths), 1.5 * (lengths > 140)):
        scores = scores_of(shape, votes=False)
        rates, _ = length_controlled("ab", scores, lengths, seed=0)
        assert scores[:, 1, 0].mean() > 0.57
        np.testing.assert_allclose(rates.rate, 0.5, atol=0.01)


@pytest.mark.parametrize("votes", [False, True])
def test_under_a_judge_that_is_blind_to_length_the_rates_stay(votes):
    rng = np.random.default_rng(1)
    quality = rng.normal(size=(2000, 4)) + np.linspace(0, 1, 4)
    scores, lengths = scores_of(quality, votes), lengths_of(2000, 4)
    rates, _ = length_controlled("abcd", scores, lengths, seed=0)
    np.testing.assert_allclose(rates.rate, scores.mean(axis=0), atol=0.025)


def test_a_judge_that_likes_quality_and_length_is_asked_for_quality_alone():
    """The quality differs from prompt to prompt: what the difficulty is for."""
    rng = np.random.default_rng(2)
    prompts = rng.normal(size=(2000, 1)) * np.array([1.5, 0, -1.5, 0, 0])
    quality = prompts + np.array([0.6, 0.3, 0, 0, -0.3])
    lengths = lengths_of(2000, 5)
    tanh = relative_lengths(lengths[:, :1], lengths[:, 1:2])[:, 0]
    scores = scores_of(quality, votes=False)
    scores[:, 0, 1] = expit(quality[:, 0] - quality[:, 1] + 2.5 * tanh)
    scores[:, 1, 0] = 1 - scores[:, 0, 1]
    truth = expit(quality[:, 0] - quality[:, 1]).mean()
    raw = scores[:, 0, 1].mean()
    with_difficulty, _ = length_controlled("abcde", scores, lengths, seed=0)
    assert abs(raw - truth) > 0.03
    assert with_difficulty.between("a", "b").value == pytest.approx(truth, abs=0.01)


def test_the_order_of_the_players_plays_no_part():
    lengths = lengths_of(300, 4)
    scores = scores_of(np.random.default_rng(0).normal(size=(300, 4)), votes=True)
    turned = [2, 0, 3, 1]
    rates, values = length_controlled("abcd", scores, lengths, seed=0)
    again, _ = length_controlled(
        [*"cadb"], scores[:, turned][:, :, turned], lengths[:, turned], seed=0
    )
    np.testing.assert_allclose(again.rate, rates.rate[turned][:, turned], atol=1e-9)
    np.testing.assert_allclose(values.mean(axis=0), rates.rate, atol=1e-12)
    np.testing.assert_array_equal(rates.rate + rates.rate.T, 1)


def test_copies_and_equal_lengths_and_a_single_prompt_are_no_trouble():
    lengths = np.full((50, 3), 7)
    scores = scores_of(np.random.default_rng(0).normal(size=(50, 1)) * [1, 1, 0], votes=False)
    rates, _ = length_controlled("abc", scores, lengths, seed=0)
    np.testing.assert_allclose(rates.rate, scores.mean(axis=0), atol=0.002)
    assert rates.between("a", "b").value == pytest.approx(0.5, abs=1e-12)
    one, _ = length_controlled("ab", scores[:1, :2, :2], lengths[:1, :2], seed=0)
    assert np.all(np.isfinite(one.rate))
    always = np.where(np.triu(np.ones((50, 3, 3)), k=1) > 0, 1.0, 0.0) + np.eye(3) / 2
    best, _ = length_controlled("abc", always, lengths_of(50, 3), seed=0)
    assert best.between("a", "c").value > 0.98


@pytest.mark.parametrize("apart", [60, 200])
def test_of_a_player_that_is_always_longer_by_about_the_same_nothing_is_known(apart):
    lengths = lengths_of(2000, 3)
    lengths[:, 2] = lengths[:, 0] + apart + np.arange(2000) % 7
    scores = as_asked(np.full((2000, 3, 3), 0.5), votes=True)
    scores[:, 2, 0] = np.arange(2000) % 10 > 0  # wins nine of ten, for its length or not
    scores[:, 0, 2] = 1 - scores[:, 2, 0]
    rates, _ = length_controlled("abc", scores, lengths, seed=0)
    cell = rates.between("c", "a")
    assert cell.low < 0.1 and cell.high > 0.9 and not rates.is_decided("c", "a")


def test_the_coefficients_are_those_of_the_penalised_likelihood():
    rng = np.random.default_rng(0)
    features, scores = rng.normal(size=(4, 200, 3)), rng.random((4, 200))
    scores[1] = np.round(scores[1])
    scores[2] = features[2, :, 0] > 0  # lengths that tell all answers
    for x, y, weights in zip(features, scores, fit(features, scores), strict=True):

        def loss(w, x=x, y=y):
            margin = x @ w
            return (np.logaddexp(0, margin) - y * margin).sum() + 0.005 * w @ w

        best = optimize.minimize(loss, np.zeros(3), method="BFGS")
        assert loss(weights) <= best.fun + 1e-9
        np.testing.assert_allclose(weights, best.x, rtol=2e-3, atol=1e-5)


def test_the_coefficients_are_those_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model", reason="pip install '.[counts]'")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 3)), rng.random(200)
    theirs = linear_model.LogisticRegression(C=100, fit_intercept=False, tol=1e-10)
    theirs.fit(np.concatenate([x, x]), np.repeat([1, 0], 200), np.concatenate([y, 1 - y]))
    np.testing.assert_allclose(fit(x, y), theirs.coef_[0], atol=1e-6)


@pytest.mark.parametrize("n", [60, 400])
def test_the_intervals_hold_the_rate_at_equal_length(n):
    """Simulated under the model; what 400 cases can tell is four standard deviations of them."""
    cases, rng = 400, np.random.default_rng(n)
    first, second = rng.normal(130, 40, (n, cases)), rng.normal(110, 40, (n, cases))
    longer, level = relative_lengths(first, second), rng.normal(size=(n, cases))
    votes = (rng.random((n, cases)) < expit(0.4 + longer + level)) * 1.0
    truth = expit(0.4 + rng.normal(size=100_000)).mean()
    features = np.stack([np.ones_like(longer), longer, level], axis=-1)
    values = influences(np.swapaxes(features, 0, 1), votes.T).T
    low, high = intervals.bootstrap(values, seed=0)
    held = np.mean((low <= truth) & (truth <= high))
    assert 0.94 - 4 * np.sqrt(0.05 * 0.95 / cases) < held < 0.99


@pytest.mark.parametrize("difficulty", [False, True])
@pytest.mark.parametrize("votes", [False, True])
def test_alpaca_eval_finds_the_same_rates(difficulty, votes, tmp_path, monkeypatch):
    """Its own program, offline, on the same answers; it chooses its penalty by cross-validation."""
    glm = pytest.importorskip(
        "alpaca_eval.metrics.glm_winrate", reason="pip install alpaca_eval (not in our extras)"
    )
    import pandas as pd

    n, rng = 805, np.random.default_rng(0)
    lengths = lengths_of(n, 2)
    hard = rng.normal(size=n)
    longer = relative_lengths(lengths[:, 1], lengths[:, 0])
    preferred = expit(0.5 + 0.8 * longer + difficulty * hard)
    if votes:
        preferred = (rng.random(n) < preferred) * 1.0
    gamed = pd.DataFrame({"model": "m", "index": np.arange(n), "instruction_difficulty": hard})
    gamed.to_csv(tmp_path / "df_gamed.csv", index=False)
    monkeypatch.setattr(glm, "hf_hub_download", lambda **_: str(tmp_path / "df_gamed.csv"))
    found = glm.get_length_controlled_winrate(
        pd.DataFrame(
            {
                "index": np.arange(n),
                "preference": 1 + preferred,
                "output_1": ["x" * int(length) for length in lengths[:, 0]],
                "output_2": ["x" * int(length) for length in lengths[:, 1]],
                "generator_1": "baseline",
                "generator_2": "model",
                "annotator": "us",
            }
        ),
        glm_name="length_controlled_noreg" if difficulty else "length_controlled_minimal",
        save_weights_dir=None,
    )
    features = [np.ones(n), longer, *([hard] if difficulty else [])]
    ours = influences(np.stack(features, axis=-1), preferred).mean()
    print(
        f"ours {ours:.5f}, alpaca_eval {found['length_controlled_winrate'] / 100:.5f}, "
        f"raw {preferred.mean():.5f}"
    )
    assert logit(ours) == pytest.approx(logit(found["length_controlled_winrate"] / 100), abs=0.01)
