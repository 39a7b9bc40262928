"""The main job's policy learner on a sequence game, measured against what the game says.

Real rollouts, a real network and a real optimiser; only the rater is a table. The exact policy is
known at every record, so that it can be held against the equilibrium and against the fixed point of
the learner's own algorithm. Letters as in `nlhf_jax.games.sequences`.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from nlhf_jax import objectives, optimizers
from nlhf_jax.errors import UserError
from nlhf_jax.games import measures
from nlhf_jax.games.equilibrium import regularized_equilibrium
from nlhf_jax.games.game import Game, from_matrix
from nlhf_jax.learners.policy import PolicyLearner
from nlhf_jax.learners.supervised import SupervisedLearner
from nlhf_jax.models.language_model import LanguageModel, PyTree, SpecialTokens
from nlhf_jax.objectives import Objective
from nlhf_jax.opponents import POLICY, Opponent, Player
from nlhf_jax.sharding import Partitioner
from nlhf_jax.studies.sequences import ResponseTree, TableScorer, fixed_point, mixture_log_probs

_METRICS = ("kl", "regularized_exploitability", "exploitability")  # of `measures.METRICS`


@dataclasses.dataclass(frozen=True)
class SequenceGame:
    """A game whose actions are all responses of a language model, which is its reference.

    Attributes:
      model: the architecture of the reference and of the policies.
      reference_params: mu, float32.
      prompts: int32 `[X, S]`, all different and equally likely.
      tree: the N responses.
      game: over X contexts and N actions, with mu's exact probabilities.
    """

    model: LanguageModel
    reference_params: PyTree
    prompts: np.ndarray
    tree: ResponseTree
    game: Game


def sequence_game(
    model: LanguageModel,
    reference_params: PyTree,
    prompts: ArrayLike,
    preference: ArrayLike,
    *,
    length: int,
    tau: float,
) -> SequenceGame:
    """The game that a preference table over all responses makes of a reference network.

    Args:
      model: with a vocabulary of a few tokens.
      reference_params: mu.
      prompts: int32 `[X, S]`.
      preference: `[N, N]` or `[X, N, N]`, in the order of `ResponseTree.responses`.
      length: T.
      tau: of the regularisation, > 0.

    Raises:
      UserError: equal prompts, or a preference that does not fit or is not antisymmetric.
    """
    prompts = np.asarray(prompts, np.int32)
    if len(np.unique(prompts, axis=0)) < len(prompts):
        raise UserError(f"the prompts {prompts.tolist()} must all be different")
    tree = ResponseTree(model.vocab_size, length, model.tokens)
    log_reference = log_probs_of_all(
        model, POLICY, {"policy": reference_params}, prompts, tree.responses
    )
    preference = np.broadcast_to(preference, (len(prompts), tree.size, tree.size))
    game = from_matrix(preference, tau=tau, reference=np.exp(log_reference))
    return SequenceGame(model, reference_params, prompts, tree, game)


def random_reference(
    model: LanguageModel,
    prompts: ArrayLike,
    *,
    length: int,
    seed: int,
    spread: float = 2.0,
    steps: int = 400,
) -> PyTree:
    """A reference by SFT on random responses: of each prompt, a log-normal random distribution.

    No response there has the token 0. That one is also the decoder's start token, and a network
    that knows positions only relative to each other, like T5, cannot count how many of it it reads:
    after 0, 00 and 000 its next tokens have the same distribution, so that a policy that often
    writes them cannot be any policy.

    Args:
      model: the architecture.
      prompts: int32 `[X, S]`.
      length: T.
      seed: of the distributions, the network and the batches.
      spread: standard deviation, in nats, of the log-probabilities before they are normalised.
      steps: of 256 responses each.
    """
    rng = np.random.default_rng(seed)
    prompts = np.asarray(prompts, np.int32)
    responses = ResponseTree(model.vocab_size, length, model.tokens).responses
    responses = responses[without_padding_inside(responses, model.tokens)]
    weights = np.exp(spread * rng.normal(size=(len(prompts), len(responses))))
    copies = 256 // len(prompts)
    with jax.enable_x64(False):
        partitioner = _one_device()
        learner = SupervisedLearner(
            model=model, partitioner=partitioner, optimizer=_optimizer(5e-3, steps), seed=seed
        )
        state = learner.init()
        inputs = np.repeat(prompts, copies, axis=0)
        for _ in range(steps):
            drawn = [rng.choice(len(responses), copies, p=w / w.sum()) for w in weights]
            batch = {"inputs": inputs, "targets": responses[np.concatenate(drawn)]}
            state, _ = learner.train_step(state, partitioner.place_batch(batch))
    return jax.device_get(state.params)


def without_padding_inside(responses: np.ndarray, special: SpecialTokens) -> np.ndarray:
    """Which of the responses `[N, T]` have no padding before their end: bool `[N]`."""
    in_response = np.cumsum(responses == special.eos, axis=1) == 0
    return ~np.any(in_response & (responses == special.pad), axis=1)


def log_probs_of_all(
    model: LanguageModel,
    player: Player,
    param_sets: Mapping[str, PyTree],
    prompts: np.ndarray,
    responses: np.ndarray,
) -> np.ndarray:
    """A player's log-probabilities of all responses to all prompts, float64 `[X, N]`, normalised.

    The networks compute in float32; what their probabilities miss of a sum of 1 is rounding.
    """
    param_sets = {name: param_sets[name] for name in player}
    with jax.enable_x64(False):
        found = _log_probs(model, tuple(player.items()), param_sets, prompts, responses)
    found = np.asarray(found, np.float64)
    return found - np.log(np.sum(np.exp(found), axis=1, keepdims=True))


def _mixtures(model, player, param_sets, prompts, responses):
    def of_prompt(prompt):
        return mixture_log_probs(model, dict(player), param_sets, prompt, responses)

    return jax.vmap(of_prompt)(prompts)


_log_probs = jax.jit(_mixtures, static_argnums=(0, 1))


@dataclasses.dataclass(frozen=True)
class Learning:
    """How a policy changed in training, at R records, the first one before the first step.

    Policies are named as in `nlhf_jax.games.policy_gradient`: "last", and "mixture" (Nash-MD's
    opponent) or "moving average" (Nash-EMA's) where there is one.

    Attributes:
      steps: int `[R]`, steps done.
      metrics: name of the policy -> name of the metric -> float64 `[R]`. "kl" is KL(pi*_tau,
        policy) in nats, "exploitability" and "regularized_exploitability" as in `measures`, and
        "kl_to_fixed_point" is KL(where the algorithm must end, policy).
      log_policies: name of the policy -> float64 `[X, N]` after the last step.
    """

    steps: np.ndarray
    metrics: dict[str, dict[str, np.ndarray]]
    log_policies: dict[str, np.ndarray]


def learn(
    played: SequenceGame,
    opponent: Opponent,
    *,
    steps: int,
    record_every: int,
    batch_size: int,
    learning_rate: float,
    kl: str = "exact",
    seed: int = 0,
    objective: Objective | None = None,
    end: ArrayLike | None = None,
) -> Learning:
    """Trains a `PolicyLearner` from the reference and measures its exact policy on the way.

    Args:
      played: the game, with tau.
      opponent: of `nlhf_jax.opponents`.
      steps: a multiple of `record_every`.
      record_every: steps between two records.
      batch_size: rows of a step, a multiple of the number of prompts.
      learning_rate: of AdamW, at the start of a cosine schedule that ends at 0.
      kl: "exact" or "sampled", as for `objectives.policy_gradient`.
      seed: of the rollouts.
      objective: of `nlhf_jax.objectives`; by default the policy gradient of the game's tau.
      end: `[X, N]`, log-probabilities of where the learner must end; by default the fixed point of
        that policy gradient.

    Raises:
      UserError: a number that does not divide the other, or what the learner refuses.
    """
    prompts = played.prompts
    if record_every < 1 or steps % record_every:
        raise UserError(f"record_every is {record_every} but must divide steps, {steps}")
    if batch_size % len(prompts):
        raise UserError(
            f"batch_size is {batch_size} but must be a multiple of the {len(prompts)} prompts"
        )
    objective = objective or objectives.policy_gradient(float(played.game.tau), kl)
    measure = _measures(played, opponent, None if end is None else jnp.asarray(end))
    with jax.enable_x64(False):
        learner = _learner(played, opponent, _optimizer(learning_rate, steps), objective, seed)
        inputs = np.repeat(prompts, batch_size // len(prompts), axis=0)
        batch = learner.partitioner.place_batch({"inputs": inputs})
        state = learner.init()
    records = []
    for step in range(steps + 1):
        if step % record_every == 0:
            policies = _policies(played, opponent, state)
            records.append(jax.device_get(measure(policies)))
        if step < steps:
            with jax.enable_x64(False):
                state, _ = learner.train_step(state, batch)
    return Learning(
        steps=np.arange(0, steps + 1, record_every),
        metrics=jax.tree.map(lambda *values: np.array(values, np.float64), *records),
        log_policies={name: np.asarray(policy) for name, policy in policies.items()},
    )


def _learner(
    played: SequenceGame,
    opponent: Opponent,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    seed: int,
) -> PolicyLearner:
    partitioner = _one_device()
    table = np.asarray(played.game.preference, np.float32)
    return PolicyLearner(
        model=played.model,
        partitioner=partitioner,
        optimizer=optimizer,
        seed=seed,
        opponent=opponent,
        objective=objective,
        scorer=TableScorer(played.tree, played.prompts),
        reference_params=lambda dtype: partitioner.replicate(played.reference_params),
        scorer_params=partitioner.replicate(table),
        max_response_length=played.tree.length,
    )


def _measures(played: SequenceGame, opponent: Opponent, end: jax.Array | None) -> Callable:
    """From exact policies to their distances from where they must end."""
    game = played.game
    if end is None:  # At its fixed point a policy is its own moving average.
        beta = opponent.weights.get("reference", 0.0)
        end = fixed_point(game, played.tree, beta).log_policy
    ends = {"last": end, "moving average": end, "mixture": _mixture(played, opponent, end)}
    equilibrium = regularized_equilibrium(game).log_policy

    @jax.jit
    def measure(policies):
        return {
            name: {
                "kl_to_fixed_point": measures.divergence(game, ends[name], policy),
                **{m: measures.METRICS[m](game, policy, equilibrium) for m in _METRICS},
            }
            for name, policy in policies.items()
        }

    return measure


def _policies(played, opponent, state):
    def exact(params):
        return log_probs_of_all(
            played.model, POLICY, {"policy": params}, played.prompts, played.tree.responses
        ).astype(played.game.preference.dtype)

    policies = {"last": exact(state.params)}
    if state.kept["average"] is not None:
        policies["moving average"] = exact(state.kept["average"])
    if len(opponent.weights) > 1:
        policies["mixture"] = _mixture(played, opponent, policies["last"])
    return policies


def _mixture(played, opponent, log_policy):
    sets = dict.fromkeys(opponent.weights, log_policy) | {"reference": played.game.log_reference}
    return played.tree.mixture(opponent.weights, sets)


def _one_device() -> Partitioner:
    return Partitioner(1, 1, 1, devices=jax.local_devices()[:1])


def _optimizer(learning_rate: float, steps: int):
    rate = optimizers.schedule(learning_rate, kind="cosine", warmup_steps=0, decay_steps=steps)
    return optimizers.adamw(rate, clip_norm=1.0)
