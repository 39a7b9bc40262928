"""How a T5 that starts from random numbers may begin, so that it reads what stands in a text.

A small network learns to find a token elsewhere late or, of few texts, never, and which token
stands before it later still. Both are a matter of where attention looks, and here it begins so.
"""

import jax

from nlhf_jax.models.language_model import PyTree

_BUCKET_BEFORE = 1  # of relative positions: the one before, in either kind of bucket
_ATTENTION_BEFORE = 8.0  # nats, above what a token has in common with itself: about 4
_QUIET = 0.3
_LOUD = 2.0


def reading_init(params: PyTree, head_dim: int) -> PyTree:
    """Random parameters, per layer, that begin with an eye for like tokens and their neighbours.

    Every head asks for what is like the asking token: the keys' projection is the queries', at the
    size that keys have. The first head of each stack looks at the token before; what the first
    layer's makes of it, the encoder's and the decoder's alike, is louder than the rest, which is
    quieter than usual. So a token is like another the more, the more their neighbours are. (A
    second token that follows another as it did before is what induction heads find, Olsson et al.
    2022, by two layers of just this kind.)

    Args:
      params: of `T5.init`, not scanned.
      head_dim: D.
    """
    params = _keys_like_queries(params, head_dim)
    own = params["encoder"]["layers_0"]["attention"]
    before = {"value": own["value"]["kernel"], "out": own["out"]["kernel"]}
    stacks = {}
    for stack, attention in (("encoder", "attention"), ("decoder", "self_attention")):
        layers = {
            name: _quieter(layer, "mlp", "wo") if name.startswith("layers_") else layer
            for name, layer in params[stack].items()
        }
        first = layers["layers_0"]
        layers["layers_0"] = first | {attention: _sees_before(first[attention], before, head_dim)}
        table = layers["relpos_bias"]["rel_embedding"]
        table = table.at[0, _BUCKET_BEFORE].set(_ATTENTION_BEFORE)
        stacks[stack] = layers | {"relpos_bias": {"rel_embedding": table}}
    return params | stacks


def _keys_like_queries(node: PyTree, head_dim: int) -> PyTree:
    if not isinstance(node, dict):
        return node
    node = {name: _keys_like_queries(child, head_dim) for name, child in node.items()}
    if {"query", "key"} <= node.keys():
        node["key"] = jax.tree.map(lambda x: x * head_dim**0.5, node["query"])
    return node


def _quieter(layer: PyTree, block: str, last: str) -> PyTree:
    kernel = layer[block][last]["kernel"]
    return layer | {block: layer[block] | {last: {"kernel": _QUIET * kernel}}}


def _sees_before(attention: PyTree, before: PyTree, head_dim: int) -> PyTree:
    """An attention whose first head writes what `before`'s does, loudly, and the others quietly."""
    value = attention["value"]["kernel"].at[:, :head_dim].set(before["value"][:, :head_dim])
    out = (_QUIET * attention["out"]["kernel"]).at[:head_dim]
    return attention | {
        "value": {"kernel": value},
        "out": {"kernel": out.set(_LOUD * before["out"][:head_dim])},
    }
