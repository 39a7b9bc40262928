"""Which T5 a set of parameters is: foreign checkpoints seldom say."""

import re
from collections.abc import Mapping
from typing import Any

from nlhf_jax.errors import UserError

_LAYER = re.compile(r"(encoder|decoder)/layers_(\d+)/")


def model_of(shapes: Mapping[str, tuple[int, ...]], checkpoint: str) -> dict[str, Any]:
    """Settings of the T5 with these parameters, as `models.registry.build` takes them.

    What shapes do not tell is as in all published T5s: GELU where the MLP is gated and ReLU where
    it is not, and positions up to 128 apart.

    Args:
      shapes: "encoder/layers_0/attention/query/kernel" and so on, one for each layer.
      checkpoint: its path, for errors.

    Raises:
      UserError: a parameter that tells a size is missing.
    """

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in shapes:
            raise UserError(
                f"the checkpoint {checkpoint} is not of a T5: it has no parameter {name}"
            )
        if len(shapes[name]) != rank:
            raise UserError(
                f"the checkpoint {checkpoint} is not of a T5: the parameter {name} has shape "
                f"{tuple(shapes[name])}, not {rank} dimension{'s' * (rank > 1)}"
            )
        return tuple(shapes[name])

    layers: dict[str, set[int]] = {"encoder": set(), "decoder": set()}
    for name in shapes:
        if match := _LAYER.match(name):
            layers[match[1]].add(int(match[2]))
    counts = {}
    for stack, found in layers.items():
        if found != set(range(len(found))) or not found:
            missing = sorted(set(range(max(found, default=0) + 1)) - found)
            raise UserError(
                f"the checkpoint {checkpoint} has no parameters of {stack}/layers_{missing[0]}"
            )
        counts[stack] = len(found)
    vocab_size, emb_dim = shape("token_embedder/embedding", 2)
    num_heads, buckets = shape("encoder/relpos_bias/rel_embedding", 2)
    _, joined = shape("encoder/layers_0/attention/query/kernel", 2)
    gated = "encoder/layers_0/mlp/wi_0/kernel" in shapes
    _, mlp_dim = shape(f"encoder/layers_0/mlp/{'wi_0' if gated else 'wi'}/kernel", 2)
    return {
        "family": "t5",
        "vocab_size": vocab_size,
        "emb_dim": emb_dim,
        "num_heads": num_heads,
        "head_dim": joined // num_heads,
        "mlp_dim": mlp_dim,
        "num_encoder_layers": counts["encoder"],
        "num_decoder_layers": counts["decoder"],
        "mlp_activations": ("gelu", "linear") if gated else ("relu",),
        "logits_via_embedding": "decoder/logits_dense/kernel" not in shapes,
        "relative_attention_num_buckets": buckets,
    }
