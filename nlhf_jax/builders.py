"""Learners as gin files name them: each function here makes one from settings and checkpoints.

A builder gets the `Setup` that all stages share from the job, and the rest from gin.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nlhf_jax import checkpoints
from nlhf_jax.data.datasets import Dataset
from nlhf_jax.errors import UserError
from nlhf_jax.learners.learner import Learner
from nlhf_jax.learners.policy import PolicyLearner, PreferenceScorer, RewardScorer
from nlhf_jax.learners.preference import PreferenceLearner
from nlhf_jax.learners.reward import RewardLearner
from nlhf_jax.learners.supervised import SupervisedLearner
from nlhf_jax.models import registry
from nlhf_jax.models.language_model import LanguageModel, PyTree
from nlhf_jax.models.t5 import T5
from nlhf_jax.models.t5_layers import T5Config
from nlhf_jax.opponents import Player
from nlhf_jax.raters import PreferenceModel, RewardModel, Template
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
    kl: str,
    both_orders: bool = True,
    average_decay: float | None = None,
    frozen_dtype: str = "float32",
) -> Learner:
    """A policy that starts at the SFT checkpoint, which is also its reference.

    Args:
      setup: from the job.
      initial_checkpoint: the SFT policy.
      rater_checkpoint: a preference model; for RLHF (no opponent) a reward model.
      opponent: from `nlhf_jax.opponents`, or None for RLHF.
      tau: weight of the KL to the reference, in units of preference (or reward) per nat.
      kl: "sampled" or "exact".
      both_orders: ask the preference model in both orders and average.
      average_decay: beta of Nash-EMA.
      frozen_dtype: in which the reference and the rater are stored, "float32" or "bfloat16".
    """
    partitioner = setup.partitioner
    reference = load_network(initial_checkpoint, partitioner, setup.data, frozen_dtype)
    rater = load_network(rater_checkpoint, partitioner, setup.data, frozen_dtype)
    wanted = "reward" if opponent is None else "preference"
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
        max_response_length=setup.feature_lengths["targets"],
        average_decay=average_decay,
        **setup.learner(),
    )


@dataclasses.dataclass(frozen=True)
class Network:
    """A frozen network from a checkpoint, on the mesh, with what the checkpoint says of itself."""

    model: LanguageModel
    params: PyTree
    description: dict[str, Any]
    vocabulary_bytes: bytes

    @property
    def kind(self) -> str:
        return self.description["kind"]

    @property
    def feature_lengths(self) -> dict[str, int]:
        return self.description["feature_lengths"]

    def preference_model(self) -> PreferenceModel:
        return PreferenceModel(
            self.model, self._template(), tuple(self.description["rater_labels"])
        )

    def reward_model(self) -> RewardModel:
        return RewardModel(self.model, self._template())

    def _template(self) -> Template:
        segments = self.description["rater_template"]
        return tuple(s if isinstance(s, str) else tuple(s) for s in segments)


def load_network(
    path: str,
    partitioner: Partitioner,
    data: Dataset | None = None,
    dtype: str = "float32",
    what: str = "params",
) -> Network:
    """Reads a checkpoint straight onto the mesh.

    Args:
      path: as in `checkpoints.load`.
      partitioner: the mesh.
      data: if given, its vocabulary must be the checkpoint's.
      dtype: in which to store the parameters.
      what: "params" or "average".

    Raises:
      UserError: the checkpoint cannot be read, or does not fit the data.
    """
    description = checkpoints.read_description(path)
    model = registry.build(description["model"])
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    sharding = partitioner.tree_sharding(model.logical_axes(), shapes)
    loaded = checkpoints.load(path, sharding=sharding, what=what)
    if data is not None:
        checkpoints.check_vocabulary_fits(loaded, data.vocabulary)
    params = loaded.params
    if dtype != "float32":
        params = jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), tree))(
            params
        )
    return Network(model, params, description, loaded.vocabulary_bytes)


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
    found = load_network(path, setup.partitioner, setup.data)
    if found.model.description() != network.description():
        old, new = found.model.description(), network.description()
        name = next(name for name in new if old.get(name) != new[name])
        raise UserError(
            f"INITIAL_CHECKPOINT {path} has {name}={old.get(name)} but the model of this run has "
            f"{name}={new[name]}; use the same model"
        )
    return found.params
