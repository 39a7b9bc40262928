"""A rater that counts."""

import sys

import numpy as np
import pytest
from scipy.optimize import minimize

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import counting
from nlhf_jax.evaluation.counting import CountingJudge, counts
from nlhf_jax.evaluation.judges import answers

TEXT = "The tool prints files. It prints them to a printer, files included."


@pytest.mark.parametrize(
    ("summary", "wanted"),
    [
        # words, characters, |words - 5|, distinct, long, capital, in text, share, stems, share,
        # the first's place, mean place, pairs
        ("prints files", [2, 12, 3, 2, 0, 0, 2, 1, 2, 1, 2 / 12, 2.5 / 12, 1]),
        ("Printing files files", [3, 20, 2, 2, 1, 1, 2, 2 / 3, 3, 1, 3 / 12, 3 / 12, 0]),
        ("something", [1, 9, 4, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0]),
        ("", [0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0]),
    ],
)
def test_what_is_counted(summary, wanted):
    np.testing.assert_allclose(counts(TEXT, summary), wanted)
    assert len(counting.NAMES) == len(wanted) == 13


def test_a_text_without_words_is_counted_too():
    assert np.all(np.isfinite(counts("", "a word"))) and np.all(np.isfinite(counts("...", "")))


def votes(count, seed):
    """Shorter summaries are preferred with the probability of a logistic in their words."""
    rng = np.random.default_rng(seed)
    words = np.array(["some", "few", "words", "prints", "files", "printer", "nobody", "reads"])
    pairs = [
        [" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(2)] for _ in range(count)
    ]
    first, second = map(list, zip(*pairs, strict=True))
    margin = np.array([len(b.split()) - len(a.split()) for a, b in pairs])
    chose_first = rng.uniform(size=count) < 1 / (1 + np.exp(-0.7 * margin))
    chosen = [a if yes else b for (a, b), yes in zip(pairs, chose_first, strict=True)]
    rejected = [b if yes else a for (a, b), yes in zip(pairs, chose_first, strict=True)]
    return [TEXT] * count, chosen, rejected, first, second, margin


def test_it_finds_what_the_votes_follow():
    """In probability, not only in order: the mean absolute error is that of 3,000 votes."""
    prompts, chosen, rejected, *_ = votes(3000, 0)
    judge = CountingJudge(prompts, chosen, rejected, np.ones(3000))
    prompts, _, _, first, second, margin = votes(500, 1)
    found = answers(judge, prompts, first, second)
    assert np.mean(np.abs(found - 1 / (1 + np.exp(-0.7 * margin)))) < 0.04
    np.testing.assert_allclose(answers(judge, prompts, second, first), 1 - found, atol=1e-12)


def test_shares_of_votes_are_that_many_votes():
    """Against the regularised likelihood, written out and minimised by scipy."""
    prompts, chosen, rejected, *_ = votes(200, 2)
    shares = np.random.default_rng(0).uniform(0.51, 1.0, 200)
    judge = CountingJudge(prompts, chosen, rejected, shares)
    texts = zip(chosen, rejected, strict=True)
    pairs = np.array([counts(TEXT, one) - counts(TEXT, other) for one, other in texts])
    pairs /= np.maximum(pairs.std(axis=0), 1e-9)

    def loss(w):
        margin = pairs @ w
        return np.sum(
            shares * np.logaddexp(0, -margin) + (1 - shares) * np.logaddexp(0, margin)
        ) + 0.5 * np.sum(w**2)

    best = minimize(loss, np.zeros(13), tol=1e-10).x
    found = answers(judge, prompts, chosen, rejected)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-pairs @ best)), atol=2e-3)


def test_it_needs_votes_and_a_library(monkeypatch):
    with pytest.raises(UserError, match="there are no votes"):
        CountingJudge([], [], [], np.zeros(0))
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(UserError, match=r"pip install '.\[counts\]'"):
        CountingJudge(["a"], ["b"], ["c"], np.ones(1))
