"""A rater that counts: logistic regression on 13 numbers of a summary and its text.

What a network has learned beyond this is what it is for. A rater that predicts votes less well has
not learned what counting shows.
"""

import re
from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from nlhf_jax.errors import UserError

NAMES = (
    "words",
    "characters",
    "|words - 5|",
    "distinct words",
    "words of more than 7 letters",
    "a capital first letter",
    "words that stand in the text",
    "share of words that stand in the text",
    "words whose first 5 letters stand in the text",
    "share of words whose first 5 letters stand in the text",
    "where in the text the first of them stands",
    "where they stand on average",
    "pairs of neighbours that stand in the text",
)
OF_LENGTH = ("words", "|words - 5|")
_STEM = 5  # letters
_WORD = re.compile(r"\w+")


def counts(text: str, summary: str) -> np.ndarray:
    """The 13 numbers of `NAMES`, float64; places are in [0, 1], 1 where no word stands there."""
    in_text, words = _WORD.findall(text.lower()), _WORD.findall(summary.lower())
    first_at = {word: place for place, word in reversed(list(enumerate(in_text)))}
    stems = {word[:_STEM] for word in in_text}
    pairs = set(zip(in_text, in_text[1:], strict=False))
    places = [first_at[word] / len(in_text) for word in words if word in first_at]
    alike = sum(word[:_STEM] in stems for word in words)
    several = max(len(words), 1)
    return np.array(
        [
            len(words),
            len(summary),
            abs(len(words) - 5),
            len(set(words)),
            sum(len(word) > 7 for word in words),
            summary[:1].isupper(),
            len(places),
            len(places) / several,
            alike,
            alike / several,
            places[0] if places else 1.0,
            np.mean(places) if places else 1.0,
            sum(pair in pairs for pair in zip(words, words[1:], strict=False)),
        ],
        np.float64,
    )


class CountingJudge:
    """Logistic regression on the differences of a pair's counts: a `judges.Judge`.

    Without a constant, so that exchanging the two gives one minus the answer.
    """

    name = "13 counts"
    votes = False

    def __init__(
        self,
        prompts: Sequence[str],
        chosen: Sequence[str],
        rejected: Sequence[str],
        vote_shares: np.ndarray,
        names: Sequence[str] = NAMES,
    ):
        """Fits it to N votes: texts, and float `[N]` in (0.5, 1], how many chose `chosen`.

        `names` are the counts that it looks at.

        Raises UserError without scikit-learn, or without votes.
        """
        try:
            from sklearn.linear_model import LogisticRegression
        except ImportError as error:
            raise UserError(
                "counting needs scikit-learn, which is not installed: pip install '.[counts]'"
            ) from error
        if not prompts:
            raise UserError("there are no votes to fit a rater that counts to")
        self._looked_at = [NAMES.index(name) for name in names]
        found = _differences(prompts, chosen, rejected)[:, self._looked_at]
        self._scale = np.maximum(found.std(axis=0), 1e-9)
        pairs = found / self._scale
        shares = np.asarray(vote_shares, np.float64)
        self._regression = LogisticRegression(fit_intercept=False, max_iter=1000)
        self._regression.fit(
            np.concatenate([pairs, -pairs, pairs, -pairs]),
            np.repeat([1, 0, 0, 1], len(pairs)),
            # Each vote in both orders, and those of the raters who chose the other.
            sample_weight=np.concatenate([shares, shares, 1 - shares, 1 - shares]) / 2,
        )

    def compare(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray:
        """P(first > second | prompt), `[N]`; see `judges.Judge`."""
        if not prompts:
            return np.zeros(0)
        found = _differences(prompts, first, second)[:, self._looked_at]
        return expit(self._regression.decision_function(found / self._scale))


def _differences(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
    return np.array(
        [
            counts(prompt, one) - counts(prompt, other)
            for prompt, one, other in zip(prompts, first, second, strict=True)
        ]
    )
