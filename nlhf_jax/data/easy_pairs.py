"""Pairs that nobody had to vote on, from a supervised file: they teach a rater to read.

A text's own summary is better than another text's, than its words in disorder, than half of it said
twice, and than the text's first words. To tell them apart a rater has to look at both the text and
the summary, and at the summary's order.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from nlhf_jax.data.batches import Examples
from nlhf_jax.data.vocabularies import Vocabulary
from nlhf_jax.errors import UserError

KINDS = ("other", "shuffled", "repeated", "beginning")
_DRAW = 2**32 - 2  # in the place of an epoch's number in a seed: see `batches`


@dataclasses.dataclass(frozen=True)
class EasyPairs:
    """How many easy pairs a rater's training has, for gin.

    Attributes:
      steps: so many first batches are of easy pairs alone.
      share: of each later batch, in [0, 1).
      kinds: of `KINDS`, drawn evenly.
    """

    steps: int
    share: float
    kinds: Sequence[str] = KINDS

    def __post_init__(self):
        if not isinstance(self.steps, int) or self.steps < 0:
            raise UserError(f"EasyPairs.steps is {self.steps!r} but must be a number of steps")
        if not 0 <= self.share < 1:
            raise UserError(f"EasyPairs.share is {self.share!r} but must be in [0, 1)")
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise UserError(f"EasyPairs.kinds is {list(self.kinds)} but must be of {list(KINDS)}")


class WithEasyPairs:
    """The training batches of votes, with easy pairs before or among them."""

    def __init__(
        self,
        votes: Examples,
        demonstrations: Examples,
        settings: EasyPairs,
        vocabulary: Vocabulary,
        seed: int,
    ):
        """`demonstrations` have `inputs` and `targets` as long as the votes' texts and summaries.

        Raises UserError if there are too few of them.
        """
        if len(demonstrations) < 2:
            raise UserError("easy pairs need a supervised file with at least 2 lines")
        self._votes, self._settings, self._seed = votes, settings, seed
        self._text = demonstrations.arrays["inputs"]
        self._own = demonstrations.arrays["targets"]
        self._words = vocabulary.starts_of_words()
        self._end = (vocabulary.pad_id, vocabulary.eos_id)

    def batch(self, step_index: int, batch_size: int, seed: int) -> dict[str, np.ndarray]:
        """Batch `step_index` (from 0), a pure function of its arguments; as `Examples.batch`.

        Easy pairs take the places of a batch's first votes.
        """
        batch = self._votes.batch(step_index, batch_size, seed)
        easy = round(self._settings.share * batch_size)
        easy = batch_size if step_index < self._settings.steps else easy
        rng = np.random.Generator(np.random.PCG64([self._seed, _DRAW, step_index]))
        for place in range(easy):
            row = int(rng.integers(len(self._own)))
            worse = self._worse(row, rng)
            batch["text"][place], batch["chosen"][place] = self._text[row], self._own[row]
            batch["rejected"][place] = self._ended(worse)
            batch["vote_share"][place] = 1.0
        return batch

    def _worse(self, row: int, rng: np.random.Generator) -> np.ndarray:
        """Tokens, without EOS, of a summary that is worse than a row's own, and not the same."""
        own = self._tokens(self._own[row])
        kind = self._settings.kinds[int(rng.integers(len(self._settings.kinds)))]
        worse = own
        if kind == "shuffled":
            words = np.split(own, np.flatnonzero(self._words[own])[1:] if len(own) > 1 else [])
            order = rng.permutation(len(words))
            if np.array_equal(order, np.arange(len(words))):
                order = np.roll(order, 1)
            worse = np.concatenate([words[number] for number in order])
        elif kind == "repeated":
            half = own[: (len(own) + 1) // 2]
            worse = np.concatenate([half, half])
        elif kind == "beginning":
            worse = self._tokens(self._text[row])[: max(len(own), 1)]
        for _ in range(20):  # Files may say the same of many texts.
            if not np.array_equal(worse, own):
                return worse
            worse = self._tokens(self._own[int(rng.integers(len(self._own)))])
        return own[: len(own) // 2]

    def _tokens(self, row: np.ndarray) -> np.ndarray:
        return row[~np.isin(row, self._end)]

    def _ended(self, tokens: np.ndarray) -> np.ndarray:
        pad, eos = self._end
        row = np.full(self._own.shape[1], pad, np.int32)
        kept = tokens[: len(row) - 1]
        row[: len(kept)], row[len(kept)] = kept, eos
        return row
