"""Networks small enough to enumerate every response, and learners over them."""

import functools

import jax
import numpy as np
import optax

from nlhf_jax import objectives, opponents
from nlhf_jax.learners.learner import Learner
from nlhf_jax.learners.policy import PolicyLearner
from nlhf_jax.learners.supervised import SupervisedLearner
from nlhf_jax.learners.votes import VoteLearner
from nlhf_jax.models.language_model import SpecialTokens
from nlhf_jax.models.t5 import T5, stack_layers
from nlhf_jax.models.t5_layers import T5Config
from nlhf_jax.optimizers import adafactor
from nlhf_jax.raters import (
    AntisymmetricModel,
    PreferenceEmbedding,
    PreferenceModel,
    PreferenceScorer,
    Rater,
    RewardModel,
    RewardScorer,
)
from nlhf_jax.sharding import Partitioner

TOKENS = SpecialTokens()
PAD, EOS, START = TOKENS

# Fixed segments and answers use ids that responses of the small policies never contain.
PREFERENCE_TEMPLATE = ((6, 7), "text", (8,), "first", (9,), "second")
REWARD_TEMPLATE = ((6, 7), "text", (8,), "first")
LABELS = (10, 11)
RATER_VOCABULARY = 12
# Every array is cut on the mesh of 2 x 2 x 2; of two layers, stacked ones are not each other's.
MESH_SIZES = {"vocab_size": RATER_VOCABULARY, "emb_dim": 16, "heads": 4, "layers": 2}

OPPONENTS = {
    "self_play": opponents.self_play(),
    "nash_md": opponents.geometric_mixture(0.3),
    "best_response": opponents.best_response(),
    "nash_ema": opponents.moving_average(0.9),
    "rlhf": None,
}
# Who writes both responses of an IPO learner.
SAMPLERS = {
    "online_ipo": opponents.self_play(),
    "ipo_md": opponents.geometric_mixture(0.3),
    "ipo_ema": opponents.moving_average(0.9),
}
PAST = 2  # MNPO's policies
# The learners of other papers: opponent and, of tau, objective.
RELATIVES = {
    "egpo": (opponents.lookahead(), lambda tau: objectives.policy_gradient(tau, "exact")),
    "mpo": (
        opponents.magnetic(2),
        lambda tau: objectives.policy_gradient(tau, "exact", 1, "magnet"),
    ),
    "online_dpo": (opponents.self_play(), objectives.dpo),
    "sppo": (opponents.previous(2), lambda tau: objectives.sppo(1 / tau)),
    "inpo": (opponents.previous(2), lambda tau: objectives.inpo(tau, 3 * tau)),
    "comal": (opponents.previous(2, 4), lambda tau: objectives.inpo(tau, 3 * tau, "magnet")),
    "mnpo": (opponents.past(PAST, 2), lambda tau: objectives.mnpo(3 * tau, 0.4, PAST)),
}
POLICIES = (*OPPONENTS, *SAMPLERS, *RELATIVES)
# Of the samplers one: the others are its program with other players.
LEARNERS = ("supervised", "preference", "reward", "embedding", *OPPONENTS, "ipo_md")


@functools.cache
def model(vocab_size: int, emb_dim: int = 8, heads: int = 2, layers: int = 1, **settings) -> T5:
    return T5(
        T5Config(
            vocab_size=vocab_size,
            emb_dim=emb_dim,
            num_heads=heads,
            head_dim=4,
            mlp_dim=2 * emb_dim,
            num_encoder_layers=layers,
            num_decoder_layers=layers,
            **settings,
        )
    )


@functools.cache
def _shapes(network: T5):
    return jax.eval_shape(lambda: network.per_layer(network.init(jax.random.key(0))))


def params(network: T5, seed: int, scale: float = 1.0):
    """Random parameters as NumPy arrays, the same numbers in both layouts.

    `scale` sharpens the output distribution. Not `network.init`, which takes seconds to compile.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        values = rng.normal(size=leaf.shape).astype(np.float32)
        if name.endswith("kernel"):
            values /= np.float32(np.sqrt(leaf.shape[0]))
        if name.endswith("scale"):
            values = 1 + values / 10
        return values * np.float32(scale) if "logits_dense" in name else values

    drawn = jax.tree_util.tree_map_with_path(draw, _shapes(network))
    return jax.tree.map(np.asarray, stack_layers(drawn)) if network.config.scan_layers else drawn


@functools.cache
def mesh(data: int, fsdp: int, tensor: int) -> Partitioner:
    return Partitioner(data, fsdp, tensor, devices=jax.devices()[: data * fsdp * tensor])


def one_device() -> Partitioner:
    return mesh(1, 1, 1)


def optimizer() -> optax.GradientTransformation:
    return adafactor(1e-2, clip_norm=None, min_dim_size_to_factor=8)


def policy_learner(
    network: T5,
    kind: str,
    *,
    kl: str = "sampled",
    tau: float = 0.3,
    length: int = 3,
    scale: float = 1.0,
    rater_network: T5 | None = None,
    rater_kind: str = "preference",
    samples: int = 1,
    start_at_reference: bool = False,
    objective: objectives.Objective | None = None,
    **learner,
) -> PolicyLearner:
    """A policy learner whose policy (seed 1), reference (seed 2) and rater (seed 3) all differ.

    `kind` is of `OPPONENTS`, of `SAMPLERS`, whose learners have no `kl`, or of `RELATIVES`.
    """
    start = {} if start_at_reference else {"initial_params": lambda: params(network, 1, scale)}
    settings = {"partitioner": one_device(), "optimizer": optimizer(), "seed": 0} | start | learner
    partitioner = settings["partitioner"]
    rater_network = rater_network or model(RATER_VOCABULARY)
    if kind in RELATIVES:
        opponent, make = RELATIVES[kind]
        objective = objective or make(tau)
    else:
        opponent = (OPPONENTS | SAMPLERS)[kind]
        gradient = objectives.policy_gradient(tau, kl, samples)
        objective = objective or (objectives.ipo(tau) if kind in SAMPLERS else gradient)
    if kind == "rlhf":
        scorer = RewardScorer(RewardModel(rater_network, REWARD_TEMPLATE))
    else:
        scorer = PreferenceScorer(rater(rater_kind, rater_network), both_orders=False)
    return PolicyLearner(
        model=network,
        opponent=opponent,
        objective=objective,
        scorer=scorer,
        reference_params=lambda dtype: placed(
            partitioner, network, network.frozen_params(params(network, 2, scale), dtype)
        ),
        scorer_params=placed(partitioner, rater_network, params(rater_network, 3, scale=20.0)),
        max_response_length=length,
        **settings,
    )


def learner(kind: str, network: T5 | None = None, **settings) -> Learner:
    """A learner of one of `LEARNERS` for `batch`; `settings` are those of `Learner`."""
    network = network or model(RATER_VOCABULARY)
    if kind in POLICIES:
        return policy_learner(network, kind, rater_network=network, **settings)
    settings = {
        "partitioner": one_device(),
        "optimizer": optimizer(),
        "seed": 0,
        "initial_params": lambda: params(network, 1),
    } | settings
    if kind == "supervised":
        return SupervisedLearner(model=network, **settings)
    return VoteLearner(rater=rater(kind, network), **settings)


def rater(kind: str, network: T5 | None = None) -> Rater:
    """A rater of one of `raters.KINDS`."""
    network = network or model(RATER_VOCABULARY)
    return {
        "preference": lambda: PreferenceModel(network, PREFERENCE_TEMPLATE, LABELS),
        "reward": lambda: RewardModel(network, REWARD_TEMPLATE),
        "embedding": lambda: PreferenceEmbedding(network, cyclic=2),
        "antisymmetric": lambda: AntisymmetricModel(
            network, PREFERENCE_TEMPLATE, LABELS, REWARD_TEMPLATE
        ),
    }[kind]()


def batch(kind: str, index: int, size: int = 8) -> dict[str, np.ndarray]:
    """A random batch for `learner(kind)`; chosen and rejected are never the same."""
    rng = np.random.default_rng(index)
    text, first, second = (texts(rng, size, length) for length in (5, 4, 4))
    if kind in POLICIES:
        return {"inputs": text}
    if kind == "supervised":
        return {"inputs": text, "targets": first}
    first[:, 0], second[:, 0] = 2, 3
    vote_share = rng.uniform(0.5, 1.0, size).astype(np.float32)
    return {"text": text, "chosen": first, "rejected": second, "vote_share": vote_share}


def texts(rng: np.random.Generator, count: int, length: int) -> np.ndarray:
    """Random texts of 2 to `length` tokens, EOS included: int32 `[count, length]`."""
    tokens = rng.integers(2, 6, (count, length))
    end = rng.integers(1, length, (count, 1))
    position = np.arange(length)
    return np.where(position < end, tokens, np.where(position == end, EOS, 0)).astype(np.int32)


def placed(partitioner: Partitioner, network: T5, values):
    shardings = partitioner.tree_sharding(network.logical_axes(), values)
    return partitioner.place(values, shardings)


def part(array: jax.Array) -> tuple[int, ...]:
    """The shape of what one device holds."""
    return array.sharding.shard_shape(array.shape)
