"""Learners as gin files name them: each function here makes one from settings and checkpoints.

A builder gets the `Setup` that all stages share from the job, and the rest from gin. `MODEL` is a
configuration of any family in `nlhf_jax.models.registry`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from nlhf_jax import objectives, opponents
from nlhf_jax.checkpoints.networks import Network, warn_of_short_texts
from nlhf_jax.data.templates import feature_length
from nlhf_jax.errors import UserError
from nlhf_jax.jobs.setup import Setup, as_trained, begin, fresh_last_logits
from nlhf_jax.learners.learner import Learner
from nlhf_jax.learners.policy import PolicyLearner
from nlhf_jax.learners.reading import ReadingLearner
from nlhf_jax.learners.supervised import SupervisedLearner
from nlhf_jax.learners.votes import VoteLearner
from nlhf_jax.objectives import Objective
from nlhf_jax.opponents import Opponent
from nlhf_jax.raters import (
    KINDS,
    AntisymmetricModel,
    EnsembleScorer,
    PreferenceEmbedding,
    PreferenceModel,
    PreferenceScorer,
    RewardModel,
    RewardScorer,
    Scorer,
)

Builder = Callable[[Setup], Learner]


def supervised(
    setup: Setup,
    model: Any,
    initial_checkpoint: str | None = None,
    remat: bool | None = None,
    dropout: float | None = None,
    base_checkpoint: str | None = None,
) -> Learner:
    """The SFT policy.

    Args:
      setup: from the job.
      model: its configuration; parameters are random.
      initial_checkpoint: of the same model, of any stage and format: where to start instead.
      remat: compute activations inside a layer again for the gradient instead of keeping them.
      dropout: share of features that are zeroed in training, and only there, in [0, 1).
      base_checkpoint: of any stage and format: the network itself, with its sizes; of `model` only
        how it is run holds then, `dtype` and `scan_layers`.

    Raises:
      UserError: settings or checkpoints that do not go together.
    """
    network, start = begin(setup, model, initial_checkpoint, base_checkpoint, remat, dropout)
    return SupervisedLearner(model=network, initial_params=start, **setup.learner())


def reading(
    setup: Setup,
    model: Any,
    initial_checkpoint: str | None = None,
    remat: bool | None = None,
    dropout: float | None = None,
    base_checkpoint: str | None = None,
) -> Learner:
    """Reading lessons, from which raters start; arguments as of `supervised`."""
    network, start = begin(setup, model, initial_checkpoint, base_checkpoint, remat, dropout)
    return ReadingLearner(model=network, initial_params=start, **setup.learner())


def preference(
    setup: Setup,
    model: Any,
    initial_checkpoint: str | None = None,
    remat: bool | None = None,
    dropout: float | None = None,
    base_checkpoint: str | None = None,
) -> Learner:
    """A preference model that reads both responses; arguments as of `supervised`."""
    network, start = begin(setup, model, initial_checkpoint, base_checkpoint, remat, dropout)
    labels = setup.data.vocabulary.rater_labels()
    rater = PreferenceModel(network, setup.data.rater.segments, labels)
    return VoteLearner(rater=rater, initial_params=start, **setup.learner())


def antisymmetric(
    setup: Setup,
    model: Any,
    initial_checkpoint: str | None = None,
    remat: bool | None = None,
    dropout: float | None = None,
    base_checkpoint: str | None = None,
) -> Learner:
    """A preference model made antisymmetric, with a reward; arguments as of `supervised`."""
    network, start = begin(setup, model, initial_checkpoint, base_checkpoint, remat, dropout)
    data = setup.data
    rater = AntisymmetricModel(
        network, data.rater.segments, data.vocabulary.rater_labels(), data.reward.segments
    )
    return VoteLearner(rater=rater, initial_params=start, **setup.learner())


def embedding(
    setup: Setup,
    model: Any,
    cyclic: int,
    reading: float,
    initial_checkpoint: str | None = None,
    remat: bool | None = None,
    dropout: float | None = None,
    base_checkpoint: str | None = None,
) -> Learner:
    """A preference embedding; arguments as of `supervised`.

    `cyclic` is in how many planes preferences may go in circles, at least 0; `reading` the weight
    of reading lessons on the responses that were voted on, at least 0. What a checkpoint's
    network says last becomes the embedding, so that starts small and random, unless the checkpoint
    is such a rater's.
    """
    if not isinstance(cyclic, int) or cyclic < 0:
        raise UserError(f"CYCLIC is {cyclic!r} but must be a whole number, at least 0")
    if reading < 0:
        raise UserError(f"READING is {reading} but must be at least 0")
    network, start = begin(setup, model, initial_checkpoint, base_checkpoint, remat, dropout)
    rater = PreferenceEmbedding(network, cyclic)
    if start is not None:
        start = fresh_last_logits(start, network, rater.size, setup, rater.kind)
    return VoteLearner(rater=rater, reading=reading, initial_params=start, **setup.learner())


def reward(
    setup: Setup,
    model: Any,
    initial_checkpoint: str | None = None,
    remat: bool | None = None,
    dropout: float | None = None,
    base_checkpoint: str | None = None,
) -> Learner:
    """A Bradley-Terry reward model; arguments as of `supervised`."""
    network, start = begin(setup, model, initial_checkpoint, base_checkpoint, remat, dropout)
    rater = RewardModel(network, setup.data.reward.segments)
    return VoteLearner(rater=rater, initial_params=start, **setup.learner())


def policy(
    setup: Setup,
    initial_checkpoint: str,
    rater_checkpoint: str | Sequence[str] | None,
    opponent: Opponent | None,
    both_orders: bool,
    frozen_dtype: str,
    compute_dtype: str | None,
    scan_layers: bool | None,
    objective: Objective | None = None,
    scorer: Callable[[Network | None], Scorer] | None = None,
    tau: float | None = None,
    kl: str | None = None,
    loss: str | None = None,
    average_decay: float | None = None,
    remat: bool | None = None,
    pessimism: float | None = None,
    start_checkpoint: str | None = None,
) -> Learner:
    """A policy that starts at the SFT checkpoint, which is also its reference.

    Args:
      setup: from the job.
      initial_checkpoint: the SFT policy.
      start_checkpoint: where the policy starts in its place, of the same network; the reference is
        `initial_checkpoint` all the same.
      rater_checkpoint: a preference model of any kind; without an opponent a reward model, or an
        embedding with `cyclic` 0; several rate as one (`raters.EnsembleScorer`); None for a scorer
        that needs no network.
      opponent: from `nlhf_jax.opponents`, or None for RLHF. With IPO it writes both responses.
      both_orders: ask the preference model in both orders and average.
      frozen_dtype: in which the reference and the rater are stored, "float32" or "bfloat16".
      compute_dtype: of activations; None for those of the checkpoints' runs.
      scan_layers: whether layers are one stacked array; None for as in the checkpoints' runs.
      objective: from `nlhf_jax.objectives`.
      scorer: makes a scorer of the rater's network; None for the one that its kind calls for.
      tau, kl, loss: in place of `objective`, as gin files of release 0.1 say it; `loss` is
        "policy_gradient" or "ipo".
      average_decay: of release 0.1, in place of `moving_average`'s own.
      remat: as in `supervised`.
      pessimism: of several preference models, how much of the spread between them is taken off
        their mean, at least 0.

    Raises:
      UserError: settings or checkpoints that do not go together.
    """
    if average_decay is not None and opponent is not None and "average" in opponent.keeps:
        opponent = opponents.moving_average(average_decay)
    if loss is not None or objective is None:
        objective = _objective_of_release_0_1(loss or "policy_gradient", tau, kl)

    def open_frozen(setting: str, source: str, kind: str) -> Network:
        return setup.open_network(
            setup.checkpoint(setting, source),
            setup.partitioner,
            setup.data,
            frozen_dtype,
            kind=kind,
            compute_dtype=compute_dtype,
            scan_layers=scan_layers,
        )

    reference = open_frozen("initial_checkpoint", initial_checkpoint, "policy")
    wanted = "reward" if opponent is None else "preference"
    sources = _numbered(rater_checkpoint)
    raters = [open_frozen(setting, path, wanted) for setting, path in sources.items()]
    for rater, path in zip(raters, sources.values(), strict=True):
        warn_of_short_texts(rater, f"RATER_CHECKPOINT {path}", setup.feature_lengths)
    several = not isinstance(rater_checkpoint, str | None)
    asked = _Asked(wanted, both_orders, pessimism, several, scorer)
    params = tuple(rater.params for rater in raters)
    learner = PolicyLearner(
        model=as_trained(reference.model, remat),
        opponent=opponent,
        objective=objective,
        scorer=asked.scorer(raters, list(sources.values())),
        reference_params=reference.read,
        scorer_params=params if several else params[0] if params else {},
        frozen_dtype=frozen_dtype,
        max_response_length=feature_length(setup.feature_lengths, "targets", "a policy"),
        **_start_at(start_checkpoint, open_frozen, reference),
        **setup.learner(),
    )
    learner.trained_against = lambda: _identities(raters)
    return learner


def _start_at(
    checkpoint: str | None, open_frozen: Callable[[str, str, str], Network], reference: Network
) -> dict[str, Any]:
    """What a learner is told to start at another network than the reference, if there is one."""
    if checkpoint is None:
        return {}
    started = open_frozen("start_checkpoint", checkpoint, "policy")
    if started.model.description() != reference.model.description():
        raise UserError(
            f"START_CHECKPOINT {started.stored.path} is of another network than INITIAL_CHECKPOINT "
            f"{reference.stored.path}"
        )
    return {"initial_params": lambda: started.read("float32")}


def _numbered(sources: str | Sequence[str] | None) -> dict[str, str]:
    """What a run's record calls a rater's checkpoint, or each of several -> the checkpoint."""
    if sources is None:
        return {}
    if isinstance(sources, str):
        return {"rater_checkpoint": sources}
    return {f"rater_checkpoint_{n}": source for n, source in enumerate(sources, start=1)}


def _identities(networks: Sequence[Network]) -> dict[str, Any]:
    """Of one rater its identity; of several that of the first, and the others beside it."""
    first, *others = [network.identity for network in networks] or [{}]
    return first | ({"others": others} if others else {})


def _objective_of_release_0_1(loss: str, tau: float | None, kl: str | None) -> Objective:
    if loss not in ("policy_gradient", "ipo"):
        raise UserError(f"LOSS is {loss!r} but must be 'policy_gradient' or 'ipo'")
    if tau is None:
        raise UserError(
            "builders.policy.objective has no value: set OBJECTIVE, for example to "
            "@objectives.policy_gradient()"
        )
    return objectives.ipo(tau) if loss == "ipo" else objectives.policy_gradient(tau, kl)


class _Asked(NamedTuple):
    """How raters are to be asked: the kind that the opponent needs, and what gin says."""

    wanted: str
    both_orders: bool
    pessimism: float | None
    several: bool
    own: Callable[[Network | None], Scorer] | None

    def scorer(self, raters: Sequence[Network], paths: Sequence[str]) -> Scorer:
        """The scorer that they are; UserError if they do not fit, with their paths."""
        if self.own is not None:
            if self.several:
                raise UserError(
                    "SCORER makes a scorer of one network but RATER_CHECKPOINT has several"
                )
            return self.own(raters[0] if raters else None)
        if not raters:
            raise UserError(
                f"RATER_CHECKPOINT is None but must be a {self.wanted} model, or SCORER must be set"
            )
        scorers = tuple(map(self._of_one, raters, paths))
        if self.several:
            return EnsembleScorer(scorers, self.pessimism or 0.0)
        if self.pessimism:
            raise UserError(
                f"PESSIMISM is {self.pessimism} but there is one rater: it is of the spread of "
                "several"
            )
        return scorers[0]

    def _of_one(self, network: Network, path: str) -> Scorer:
        rater = network.rater() if network.kind in KINDS else None
        rewards = self.wanted == "reward"
        if rater is None or (not rater.rewards if rewards else rater.kind == "reward"):
            raise UserError(
                f"the rater {path} is a {network.kind} model but this opponent needs a "
                f"{self.wanted} model"
            )
        if rewards:
            return RewardScorer(rater)
        return PreferenceScorer(rater, self.both_orders)
