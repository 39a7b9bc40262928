"""Learners as gin files name them: each function here makes one from settings and checkpoints.

A builder gets the `Setup` that all stages share from the job, and the rest from gin.
"""

import dataclasses
from collections.abc import Callable

import optax

from nlhf_jax.checkpoints.networks import check_vocabulary, load_network, read_params
from nlhf_jax.checkpoints.opening import open_checkpoint
from nlhf_jax.data.datasets import Dataset
from nlhf_jax.errors import UserError
from nlhf_jax.learners.learner import Learner
from nlhf_jax.learners.policy import PolicyLearner, PreferenceScorer, RewardScorer
from nlhf_jax.learners.preference import PreferenceLearner
from nlhf_jax.learners.reward import RewardLearner
from nlhf_jax.learners.supervised import SupervisedLearner
from nlhf_jax.models import registry
from nlhf_jax.models.language_model import PyTree
from nlhf_jax.models.t5 import T5
from nlhf_jax.models.t5_layers import T5Config
from nlhf_jax.opponents import Player
from nlhf_jax.raters import PreferenceModel, RewardModel
from nlhf_jax.sharding import Partitioner


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a job knows and every learner needs."""

    data: Dataset
    feature_lengths: dict[str, int]
    partitioner: Partitioner
    optimizer: optax.GradientTransformation
    seed: int
    microbatches: int

    def learner(self) -> dict:
        """The arguments that all learners share."""
        return {
            "partitioner": self.partitioner,
            "optimizer": self.optimizer,
            "seed": self.seed,
            "microbatches": self.microbatches,
        }


Builder = Callable[[Setup], Learner]


def supervised(setup: Setup, model: T5Config, initial_checkpoint: str | None = None) -> Learner:
    """The SFT policy: random, or fine-tuned further from a checkpoint of the same model."""
    network = _network(model, setup.data)
    params = _initial_params(initial_checkpoint, network, setup)
    return SupervisedLearner(model=network, initial_params=params, **setup.learner())


def preference(setup: Setup, model: T5Config, initial_checkpoint: str | None = None) -> Learner:
    """A preference model; `initial_checkpoint` may be of any stage with the same model."""
    network = _network(model, setup.data)
    labels = setup.data.vocabulary.rater_labels()
    rater = PreferenceModel(network, setup.data.rater.segments, labels)
    params = _initial_params(initial_checkpoint, network, setup)
    return PreferenceLearner(rater=rater, initial_params=params, **setup.learner())


def reward(setup: Setup, model: T5Config, initial_checkpoint: str | None = None) -> Learner:
    """A Bradley-Terry reward model; `initial_checkpoint` as in `preference`."""
    network = _network(model, setup.data)
    rater = RewardModel(network, setup.data.reward.segments)
    params = _initial_params(initial_checkpoint, network, setup)
    return RewardLearner(rater=rater, initial_params=params, **setup.learner())


def policy(
    setup: Setup,
    initial_checkpoint: str,
    rater_checkpoint: str,
    opponent: Player | None,
    tau: float,
    kl: str | None,
    loss: str = "policy_gradient",
    both_orders: bool = True,
    average_decay: float | None = None,
    frozen_dtype: str = "float32",
    compute_dtype: str | None = None,
    scan_layers: bool | None = None,
) -> Learner:
    """A policy that starts at the SFT checkpoint, which is also its reference.

    Args:
      setup: from the job.
      initial_checkpoint: the SFT policy.
      rater_checkpoint: a preference model; for RLHF (no opponent) a reward model.
      opponent: from `nlhf_jax.opponents`, or None for RLHF. With IPO it writes both responses.
      tau: weight of the KL to the reference, in units of preference (or reward) per nat.
      kl: "sampled" or "exact"; None for IPO.
      loss: "policy_gradient", or "ipo" for online IPO and IPO-MD.
      both_orders: ask the preference model in both orders and average.
      average_decay: beta of Nash-EMA.
      frozen_dtype: in which the reference and the rater are stored, "float32" or "bfloat16".
      compute_dtype: of activations; None for those of the checkpoints' runs.
      scan_layers: whether layers are one stacked array; None for as in the checkpoints' runs.
    """
    wanted = "reward" if opponent is None else "preference"
    reference, rater = (
        load_network(
            path,
            setup.partitioner,
            setup.data,
            frozen_dtype,
            kind=kind,
            compute_dtype=compute_dtype,
            scan_layers=scan_layers,
        )
        for path, kind in ((initial_checkpoint, "policy"), (rater_checkpoint, wanted))
    )
    if rater.kind != wanted:
        raise UserError(
            f"the rater {rater_checkpoint} is a {rater.kind} model but this opponent needs a "
            f"{wanted} model"
        )
    if opponent is None:
        scorer = RewardScorer(rater.reward_model())
    else:
        scorer = PreferenceScorer(rater.preference_model(), both_orders)
    return PolicyLearner(
        model=reference.model,
        opponent=opponent,
        scorer=scorer,
        reference_params=reference.params,
        scorer_params=rater.params,
        tau=tau,
        kl=kl,
        loss=loss,
        max_response_length=setup.feature_lengths["targets"],
        average_decay=average_decay,
        **setup.learner(),
    )


def _network(config: T5Config, data: Dataset) -> T5:
    if config.vocab_size < data.vocabulary.size:
        raise UserError(
            f"T5Config.vocab_size is {config.vocab_size} but the vocabulary has "
            f"{data.vocabulary.size} pieces; raise it"
        )
    return T5(config)


def _initial_params(path: str | None, network: T5, setup: Setup) -> PyTree | None:
    if path is None:
        return None
    found = open_checkpoint(path)
    check_vocabulary(found, setup.data)
    params = read_params(found, network, setup.partitioner, "float32")
    # What no shape tells.
    old, new = registry.build(found.model).description(), network.description()
    for name in sorted(new.keys() - {"dtype", "scan_layers"}):
        if old.get(name) != new[name]:
            raise UserError(
                f"INITIAL_CHECKPOINT {path} has {name}={old.get(name)} but the model of this run "
                f"has {name}={new[name]}; use the same model"
            )
    return params
