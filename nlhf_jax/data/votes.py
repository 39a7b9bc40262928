"""What a rater could learn from a user's votes: how far they agree, and what little explains."""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from nlhf_jax.data.json_lines import Comparison
from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import counting
from nlhf_jax.evaluation.votes import agreement

_FOLDS = 5
_MOST = 20_000  # votes to which counting is fitted: more take long and say the same


@dataclasses.dataclass(frozen=True)
class VoteCheck:
    """What is in the votes of a file. Shares are None where nothing is to be counted.

    Attributes:
      votes: lines.
      prompts, pairs: different ones; a pair is two texts to one prompt, in whichever order.
      voted_again: pairs of which there is more than one line.
      contradicted: of these, those with a line for each of the two.
      ties: of these, those that are as often chosen as rejected.
      agreement: share of two lines on one pair, drawn from all such, that choose the same.
      shared: lines whose weight says that not all of several raters chose so.
      best: share of the votes on pairs with several raters that follow the pair's majority. The
        majority has seen these votes: no rater predicts more of them.
      triples: three texts to a prompt of which every two were compared, without a tie.
      cycles: those in which each is preferred to the next.
      longer: share of votes for the one with more words, of those on texts of different length.
      by_length, by_counts: share of votes on held-out prompts that logistic regression predicts, on
        two counts of length and on the 13 of `evaluation.counting`; None also without scikit-learn.
    """

    votes: int
    prompts: int
    pairs: int
    voted_again: int
    contradicted: int
    ties: int
    agreement: float | None
    shared: int
    best: float | None
    triples: int
    cycles: int
    longer: float | None
    by_length: float | None
    by_counts: float | None

    def report(self) -> list[str]:
        """Lines for the terminal."""
        lines = [f"  {self.votes:,} votes on {self.pairs:,} pairs of {self.prompts:,} prompts"]
        if self.voted_again:
            lines.append(
                f"  {self.voted_again:,} pairs have several lines, {self.contradicted:,} of them"
                f" for both sides, {self.ties:,} as many for each; two such lines agree in"
                f" {self.agreement:.1%}"
            )
        if self.shared:
            lines.append(f"  on {self.shared:,} pairs the raters' weights are below 1")
        if self.best is not None:
            lines.append(
                f"  best possible where several voted: {self.best:.1%} of these votes follow the"
                " majority of their pair"
            )
        if self.triples:
            lines.append(
                f"  {self.cycles:,} of {self.triples:,} triples of texts are cycles: each is"
                " preferred to the next"
            )
        if self.longer is not None:
            lines.append(f"  the one with more words was chosen in {self.longer:.1%}")
        if self.by_length is not None:
            count = len(counting.NAMES)
            lines.append(
                f"  length alone predicts {self.by_length:.1%} of the votes on held-out prompts,"
                f" {count} counts of words {self.by_counts:.1%}: a rater should do better"
            )
        elif self.votes >= _FOLDS:
            lines.append(
                "  what counting words predicts needs scikit-learn: pip install '.[counts]'"
            )
        return lines


def check_votes(rows: Sequence[Comparison]) -> VoteCheck:
    """Reads the votes of a file, of which there is at least one."""
    # prompt -> the two texts in order -> (share that chose the first of the two, its weight is 1)
    by_pair: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for row in rows:
        first, second = sorted((row.chosen, row.rejected))
        share = row.weight if row.chosen == first else 1 - row.weight
        by_pair[row.prompt, first, second].append(share)
    again = [shares for shares in by_pair.values() if len(shares) > 1]
    several = [
        share
        for shares in by_pair.values()
        if len(shares) > 1 or 0 < shares[0] < 1
        for share in [max(np.mean(shares), 1 - np.mean(shares))] * len(shares)
    ]
    triples, cycles = _cycles({pair: float(np.mean(x)) for pair, x in by_pair.items()})
    by_length, by_counts = _explained(rows)
    return VoteCheck(
        votes=len(rows),
        prompts=len({row.prompt for row in rows}),
        pairs=len(by_pair),
        voted_again=len(again),
        contradicted=sum(min(shares) < 0.5 < max(shares) for shares in again),
        ties=sum(np.isclose(np.mean(shares), 0.5) for shares in again),
        agreement=_agreement(again),
        shared=sum(any(0 < x < 1 for x in shares) for shares in by_pair.values()),
        best=float(np.mean(several)) if several else None,
        triples=triples,
        cycles=cycles,
        longer=_longer(rows),
        by_length=by_length,
        by_counts=by_counts,
    )


def _agreement(again: Sequence[Sequence[float]]) -> float | None:
    agreeing = [
        (one > 0.5) == (other > 0.5)
        for shares in again
        for one, other in itertools.combinations(shares, 2)
    ]
    return float(np.mean(agreeing)) if agreeing else None


def _cycles(preferred: Mapping[tuple[str, str, str], float]) -> tuple[int, int]:
    """How many triples were compared whole, and how many of these go in circles."""
    beats: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for (prompt, first, second), share in preferred.items():
        if not np.isclose(share, 0.5):
            winner, loser = (first, second) if share > 0.5 else (second, first)
            beats[prompt][winner].add(loser)
    triples = cycles = 0
    for graph in beats.values():
        met = {text: set(losers) for text, losers in graph.items()}
        for winner, losers in graph.items():
            for loser in losers:
                met.setdefault(loser, set()).add(winner)
        for one in met:
            for two, three in itertools.combinations(sorted(x for x in met[one] if x > one), 2):
                if three in met[two]:
                    triples += 1
                    # In a ranking one of the three beats both others; in a cycle none does.
                    won = (len(graph[x] & {one, two, three}) for x in (one, two, three))
                    cycles += max(won) == 1
    return triples, cycles


def _longer(rows: Sequence[Comparison]) -> float | None:
    found = []
    for row in rows:
        chosen, rejected = len(row.chosen.split()), len(row.rejected.split())
        if chosen != rejected:
            found.append(row.weight if chosen > rejected else 1 - row.weight)
    return float(np.mean(found)) if found else None


def _explained(rows: Sequence[Comparison]) -> tuple[float | None, float | None]:
    """Held-out accuracy of counting length alone, and of all counts."""
    rows = rows[:: -(-len(rows) // _MOST)]
    prompts = sorted({row.prompt for row in rows})
    fold_of = {prompt: number % _FOLDS for number, prompt in enumerate(prompts)}
    if len(prompts) < _FOLDS:
        return None, None
    shares = np.array([row.weight for row in rows])
    folds = np.array([fold_of[row.prompt] for row in rows])
    try:
        return (
            _held_out(rows, shares, folds, counting.OF_LENGTH),
            _held_out(rows, shares, folds, counting.NAMES),
        )
    except UserError:  # without scikit-learn
        return None, None


def _held_out(
    rows: Sequence[Comparison], shares: np.ndarray, folds: np.ndarray, names: Sequence[str]
) -> float:
    agreeing = np.zeros(len(rows))
    for fold in range(_FOLDS):
        held_out = folds == fold
        judge = counting.CountingJudge(*_texts(rows, ~held_out), shares[~held_out], names)
        preferred = judge.compare(*_texts(rows, held_out))
        agreeing[held_out] = agreement(preferred, shares[held_out])
    return float(agreeing.mean())


def _texts(rows: Sequence[Comparison], mask: np.ndarray) -> tuple[list[str], list[str], list[str]]:
    """Prompts, chosen and rejected of some rows."""
    some = [rows[int(number)] for number in np.flatnonzero(mask)]
    return [r.prompt for r in some], [r.chosen for r in some], [r.rejected for r in some]
