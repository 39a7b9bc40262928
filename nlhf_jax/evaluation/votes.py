"""How well raters predict votes that they were not trained on, and how far their word goes."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import intervals, judges
from nlhf_jax.evaluation.intervals import Estimate
from nlhf_jax.evaluation.judges import Judge

_MOST_BINS, _FEWEST = 10, 40  # of the reliability diagram, and comparisons in each
_TELLS_FROM = 0.55  # accuracy
_LEAST = 1e-6  # of a probability in the log-loss


@dataclasses.dataclass(frozen=True)
class Reliability:
    """A point of the reliability diagram: comparisons of which a rater is about equally sure.

    Attributes:
      certainty: mean probability of what it prefers, in [1/2, 1].
      accuracy: share of the votes that agree with that.
      comparisons: how many these are.
    """

    certainty: float
    accuracy: float
    comparisons: int


@dataclasses.dataclass(frozen=True)
class RaterAccuracy:
    """One row of the table of raters.

    Attributes:
      name: the rater's.
      accuracy: share of the votes that agree with what the rater prefers, with its bootstrap
        interval over posts: votes on one post are alike, so they are drawn together.
      comparisons: how many it was measured on.
      posts: how many different prompts these have; None in files from before they were counted.
      log_loss: mean of -log P(vote), in nats; log 2 = 0.693 of a coin. None in older files.
      certainty: mean probability of what the rater prefers, in [1/2, 1]; None in older files.
      reliability: the reliability diagram, from unsure to sure.
      temperature: what the rater's log-odds were divided by to calibrate it; None if by nothing.
    """

    name: str
    accuracy: Estimate
    comparisons: int
    posts: int | None = None
    log_loss: float | None = None
    certainty: float | None = None
    reliability: tuple[Reliability, ...] = ()
    temperature: float | None = None

    @property
    def overconfidence(self) -> float | None:
        """By how much it is surer of what it prefers than the votes agree; negative if less sure.

        0 of a calibrated rater.
        """
        return None if self.certainty is None else self.certainty - self.accuracy.value

    @property
    def can_tell(self) -> bool:
        """Whether it is clearly better than a coin at what people prefer."""
        return self.accuracy.low > 0.5 and self.accuracy.value >= _TELLS_FROM


def rater_accuracy(
    name: str,
    judge: Judge,
    prompts: Sequence[str],
    chosen: Sequence[str],
    rejected: Sequence[str],
    vote_shares: np.ndarray,
    seed: int,
) -> RaterAccuracy:
    """Compares a judge's preference with votes; where it prefers neither, half of them agree.

    Args:
      name: how reports call the rater.
      judge: the rater.
      prompts, chosen, rejected: N texts each.
      vote_shares: float `[N]` in (0.5, 1], how many of the raters chose `chosen`; 1 for one vote.
      seed: of the bootstrap.

    Raises:
      UserError: there are no comparisons.
    """
    if not prompts:
        raise UserError(f"there are no comparisons on which to measure the rater '{name}'")
    preferred = judges.answers(judge, prompts, chosen, rejected)
    shares = np.asarray(vote_shares, np.float64)
    agreeing = agreement(preferred, shares)
    posts, post_of = np.unique(np.asarray(prompts, object), return_inverse=True)
    certainty = np.maximum(preferred, 1 - preferred)
    return RaterAccuracy(
        name,
        intervals.bootstrap_mean_of_groups(agreeing, post_of, seed),
        len(prompts),
        len(posts),
        log_loss(preferred, shares),
        float(certainty.mean()),
        _reliability(certainty, agreeing),
        getattr(judge, "temperature", None),
    )


def agreement(preferred: np.ndarray, vote_shares: np.ndarray) -> np.ndarray:
    """Share of each comparison's votes `[N]` that agree with a preference; of a tie one half."""
    return np.select([preferred > 0.5, preferred < 0.5], [vote_shares, 1 - vote_shares], 0.5)


def log_loss(preferred: np.ndarray, vote_shares: np.ndarray) -> float:
    """Mean of -log P(vote) in nats, of probabilities `[N]` of the chosen ones and vote shares."""
    for_chosen, against = (np.log(np.clip(p, _LEAST, 1)) for p in (preferred, 1 - preferred))
    return float(-np.mean(vote_shares * for_chosen + (1 - vote_shares) * against))


def _reliability(certainty: np.ndarray, agreeing: np.ndarray) -> tuple[Reliability, ...]:
    """Bins of equally many comparisons, but equal certainties stay together."""
    count = int(np.clip(len(certainty) // _FEWEST, 1, _MOST_BINS))
    edges = np.unique(np.quantile(certainty, np.arange(1, count) / count))
    bins = np.searchsorted(edges, certainty, side="right")
    return tuple(
        Reliability(
            float(certainty[bins == one].mean()),
            float(agreeing[bins == one].mean()),
            int((bins == one).sum()),
        )
        for one in np.unique(bins)
    )
