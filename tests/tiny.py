"""Networks small enough to enumerate every response, shared by the tests of the core."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from nlhf_jax import opponents
from nlhf_jax.learners.policy import PolicyLearner, PreferenceScorer, RewardScorer
from nlhf_jax.learners.preference import PreferenceLearner
from nlhf_jax.learners.reward import RewardLearner
from nlhf_jax.learners.supervised import SupervisedLearner
from nlhf_jax.models.t5 import T5
from nlhf_jax.models.t5_layers import T5Config
from nlhf_jax.optimizers import adafactor
from nlhf_jax.raters import PreferenceModel, RewardModel
from nlhf_jax.sharding import Partitioner

# Fixed segments use ids that responses of the small policies never contain.
PREFERENCE_TEMPLATE = ((6, 7), "text", (8,), "first", (9,), "second")
REWARD_TEMPLATE = ((6, 7), "text", (8,), "first")
OPPONENTS = {
    "self_play": opponents.self_play(),
    "nash_md": opponents.geometric_mixture(0.3),
    "best_response": opponents.best_response(),
    "nash_ema": opponents.moving_average(),
    "rlhf": None,
}


@functools.cache
def model(vocab_size: int, emb_dim: int = 8, scan_layers: bool = False, heads: int = 2) -> T5:
    return T5(
        T5Config(
            vocab_size=vocab_size,
            emb_dim=emb_dim,
            num_heads=heads,
            head_dim=4,
            mlp_dim=2 * emb_dim,
            num_encoder_layers=2,
            num_decoder_layers=2,
            scan_layers=scan_layers,
        )
    )


def params(network: T5, seed: int, scale: float = 1.0):
    """Random parameters; `scale` sharpens the output distribution."""
    values = jax.jit(network.init)(jax.random.key(seed))
    values["decoder"]["logits_dense"]["kernel"] *= scale
    return values


def responses(vocab_size: int, length: int) -> np.ndarray:
    """Every response of at most `length` tokens, int32 `[N, length]`, padded with 0."""
    found = []
    for n in range(1, length + 1):
        tokens = [t for t in range(vocab_size) if t != 1]
        for prefix in itertools.product(tokens, repeat=n - 1):
            found.append(prefix + (1,) + (0,) * (length - n))
    found += list(itertools.product([t for t in range(vocab_size) if t != 1], repeat=length))
    return np.asarray(found, np.int32)


def mixture_log_probs(network: T5, player, param_sets, inputs, all_responses) -> jax.Array:
    """log-probability of every response to one prompt, by teacher forcing the mixed logits."""
    from nlhf_jax.models.language_model import response_mask, token_log_probs

    inputs = jnp.broadcast_to(inputs, (len(all_responses), len(inputs)))
    mixed = 0.0
    for name, weight in player.items():
        context = network.encode(param_sets[name], inputs)
        mixed += weight * network.logits(param_sets[name], context, all_responses)
    log_probs = token_log_probs(mixed, all_responses)
    return jnp.sum(log_probs * response_mask(all_responses), axis=-1)


def policy_learner(
    network: T5,
    opponent: str,
    *,
    kl: str = "sampled",
    tau: float = 0.3,
    partitioner: Partitioner | None = None,
    initial_seed: int = 1,
    length: int = 3,
    scale: float = 1.0,
    optimizer=None,
    microbatches: int = 1,
    rater_network: T5 | None = None,
) -> PolicyLearner:
    """A policy learner whose policy (seed 1), reference (seed 2) and rater (seed 3) all differ."""
    partitioner = partitioner or one_device()
    rater_network = rater_network or model(12)
    rater_params = params(rater_network, 3, scale=4.0)
    if opponent == "rlhf":
        scorer = RewardScorer(RewardModel(rater_network, REWARD_TEMPLATE))
    else:
        rater = PreferenceModel(rater_network, PREFERENCE_TEMPLATE, labels=(10, 11))
        scorer = PreferenceScorer(rater, both_orders=False)
    return PolicyLearner(
        model=network,
        partitioner=partitioner,
        optimizer=optimizer or adafactor(1e-2, min_dim_size_to_factor=8),
        seed=0,
        initial_params=params(network, initial_seed, scale),
        opponent=OPPONENTS[opponent],
        scorer=scorer,
        reference_params=placed(partitioner, network, params(network, 2, scale)),
        scorer_params=placed(partitioner, rater_network, rater_params),
        tau=tau,
        kl=kl,
        max_response_length=length,
        average_decay=0.9 if opponent == "nash_ema" else None,
        microbatches=microbatches,
    )


def supervised_learner(network: T5, *, partitioner=None, optimizer=None, microbatches=1):
    return SupervisedLearner(
        model=network,
        partitioner=partitioner or one_device(),
        optimizer=optimizer or adafactor(1e-2, min_dim_size_to_factor=8),
        seed=0,
        microbatches=microbatches,
    )


def rater_learner(network: T5, kind: str, *, partitioner=None, optimizer=None, microbatches=1):
    settings = {
        "partitioner": partitioner or one_device(),
        "optimizer": optimizer or adafactor(1e-2, min_dim_size_to_factor=8),
        "seed": 0,
        "microbatches": microbatches,
    }
    if kind == "reward":
        return RewardLearner(rater=RewardModel(network, REWARD_TEMPLATE), **settings)
    rater = PreferenceModel(network, PREFERENCE_TEMPLATE, labels=(10, 11))
    return PreferenceLearner(rater=rater, **settings)


def placed(partitioner: Partitioner, network: T5, values):
    shardings = partitioner.tree_sharding(network.logical_axes(), values)
    return partitioner.place(values, shardings)


@functools.cache
def one_device() -> Partitioner:
    return Partitioner(devices=jax.devices()[:1])
