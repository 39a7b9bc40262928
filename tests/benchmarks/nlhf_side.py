"""This project's side of `against_trl.py`: Nash-MD with a T5."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from work import (
    ADAM_BETAS,
    ADAM_EPSILON,
    BETA,
    CLIP_NORM,
    FIRST_WORD,
    LEARNING_RATE,
    PRODUCT,
    TAU,
    Turns,
    Work,
    product_gflops,
    run_side,
)

from nlhf_jax import huge_pages, objectives, opponents, optimizers
from nlhf_jax.learners.policy import PolicyLearner
from nlhf_jax.models.t5 import T5
from nlhf_jax.models.t5_layers import T5Config
from nlhf_jax.raters import PreferenceScorer, RewardModel
from nlhf_jax.sharding import Partitioner


def network(work: Work) -> T5Config:
    return T5Config(
        vocab_size=work.vocabulary,
        emb_dim=work.width,
        num_heads=work.heads,
        head_dim=work.width // work.heads,
        mlp_dim=work.mlp,
        num_encoder_layers=work.layers // 2,
        num_decoder_layers=work.layers // 2,
        dtype=work.precision,
        scan_layers=work.layers > 24,  # as of gin_configs/models: those above Base
    )


def learner(work: Work) -> PolicyLearner:
    partitioner = Partitioner(data=1, fsdp=1, tensor=1)
    rater = T5(network(work))
    # An end that is no token of the vocabulary is never sampled.
    policy = T5(dataclasses.replace(network(work), eos_id=work.vocabulary))

    def params(model: T5, seed: int, dtype: str):
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        shardings = partitioner.tree_sharding(model.logical_axes(), shapes)
        drawn = model.frozen_params(model.init(jax.random.key(seed)), dtype)
        return partitioner.place(drawn, shardings)

    return PolicyLearner(
        model=policy,
        opponent=opponents.geometric_mixture(BETA),
        objective=objectives.policy_gradient(TAU, "sampled"),
        # P(y > y') = sigmoid(r(y) - r(y')), as on the other side.
        scorer=PreferenceScorer(RewardModel(rater, ("text", "first")), both_orders=False),
        reference_params=lambda dtype: params(policy, 0, dtype),
        scorer_params=params(rater, 1, work.precision),
        max_response_length=work.response,
        frozen_dtype=work.precision,
        partitioner=partitioner,
        optimizer=optimizers.adamw(
            LEARNING_RATE,
            clip_norm=CLIP_NORM,
            b1=ADAM_BETAS[0],
            b2=ADAM_BETAS[1],
            eps=ADAM_EPSILON,
        ),
        seed=0,
    )


def prompts(work: Work) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    while True:
        drawn = rng.integers(FIRST_WORD, work.vocabulary, (work.batch, work.prompt))
        yield {"inputs": drawn.astype(np.int32)}


def size(params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def peak(work: Work) -> float:
    matrix = jax.random.normal(jax.random.key(0), (PRODUCT, PRODUCT), work.precision)
    product = jax.jit(jnp.matmul).lower(matrix, matrix).compile()
    return product_gflops(lambda: jax.block_until_ready(product(matrix, matrix)))


def start(work: Work, turns: Turns) -> None:
    if work.precision == "float32":  # A GPU's own choice has 10 bits of mantissa.
        jax.config.update("jax_default_matmul_precision", "highest")
    nash_md = learner(work)
    state = nash_md.init()
    batches = prompts(work)
    embeddings = [state.params["token_embedder"], state.params["decoder"]["logits_dense"]]
    about = {
        "parameters": size(state.params),
        "outside_embeddings": size(state.params) - size(embeddings),
        "versions": f"jax {jax.__version__}",
        "product_gflops": peak(work),
        "device": jax.devices()[0].device_kind,
    }
    more = turns.ready(about)
    while more:
        batch = nash_md.partitioner.place_batch(next(batches))
        state, metrics = nash_md.train_step(state, batch)
        jax.block_until_ready((state, metrics))
        more = turns.done()
    # Read after the last turn: what was measured was the work that was to be measured.
    if (length := float(jnp.asarray(metrics["response_length"]))) != work.response:
        raise SystemExit(f"responses have {length} tokens, not {work.response}")


if __name__ == "__main__":
    huge_pages.ask()  # as `nlhf` does
    run_side(start)
