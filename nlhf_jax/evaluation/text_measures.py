"""How varied, repetitive and new the texts of a player are, counted in words.

Words are runs of letters, digits and underscores, in lower case.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

_WORD = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True)
class TextMeasures:
    """Shares in [0, 1]; None where no response has a word, or a pair of them.

    Attributes:
      distinct_1, distinct_2: distinct-n (Li et al. 2016, arXiv 1510.03055): different words, or
        different pairs of neighbours, over all of them in all responses. They fall with the number
        of words, so compare players on the same prompts and of like lengths.
      repetition: of the pairs of neighbours in one response, the share that has stood in it before
        (seq-rep-2; Welleck et al. 2020, arXiv 1908.04319), a mean over responses.
      novelty: of the words of a response, the share that does not stand in its prompt, a mean over
        responses.
    """

    distinct_1: float | None
    distinct_2: float | None
    repetition: float | None
    novelty: float | None


def measure(prompts: Sequence[str], responses: Sequence[str]) -> TextMeasures:
    """The measures of N responses to N prompts."""
    words = [_words(text) for text in responses]
    pairs = [list(zip(of, of[1:], strict=False)) for of in words]
    known = {prompt: set(_words(prompt)) for prompt in set(prompts)}
    return TextMeasures(
        distinct_1=_distinct(words),
        distinct_2=_distinct(pairs),
        repetition=_mean([1 - len(set(of)) / len(of) for of in pairs if of]),
        novelty=_mean(
            [
                sum(word not in known[prompt] for word in of) / len(of)
                for prompt, of in zip(prompts, words, strict=True)
                if of
            ]
        ),
    )


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _distinct(lists: Sequence[Sequence]) -> float | None:
    every = [item for one in lists for item in one]
    return len(set(every)) / len(every) if every else None


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
