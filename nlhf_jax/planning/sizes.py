"""A T5's arrays by its settings alone, without tracing it: shapes, axes, and how many of each."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from nlhf_jax.models.t5_layers import T5Config
from nlhf_jax.sharding import LOGICAL_AXIS_RULES, decode_layout


class Mesh(NamedTuple):
    """Sizes of the mesh's axes, see `nlhf_jax.sharding`; `data` includes the slices."""

    data: int
    fsdp: int
    tensor: int
    slices: int = 1

    @property
    def axes(self) -> tuple[int, int, int]:
        """As `sharding.MESH_AXES` has them."""
        return self.data, self.fsdp, self.tensor

    @property
    def chips(self) -> int:
        return self.data * self.fsdp * self.tensor

    @property
    def batch_shares(self) -> int:
        return self.data * self.fsdp

    def cuts(self, size: int, axis: str | None) -> int:
        """In how many parts a dimension is cut; one that does not divide stays whole."""
        rule = LOGICAL_AXIS_RULES.get(axis, ()) if axis is not None else ()
        names = (rule,) if isinstance(rule, str) else rule
        cuts = math.prod(getattr(self, name) for name in names)
        return cuts if size % cuts == 0 else 1


ALONE = Mesh(1, 1, 1)


def decoding_mesh(layout: str, mesh: Mesh, rows: int, weights: float) -> Mesh:
    """How a rollout of so many prompts cuts them and the weights: as a mesh that would do the same.

    Args:
      layout: "replicated" (all chips have all weights and a part of the rows), "tensor" (weights
        are cut along `tensor` alone), "spread" (also along `fsdp`, in the same way), "trained" (as
        in training: weights that are cut along `fsdp` are gathered for each token), or "auto".
      mesh: that of training.
      rows: prompts; axes that do not divide them do not cut them, the last ones first.
      weights: bytes of all weights that are decoded with.
    """
    layout = decode_layout(layout, mesh.tensor, weights)
    if layout == "trained" or mesh.chips == 1:
        return mesh
    along, tensor = {
        "replicated": ((mesh.data, mesh.fsdp, mesh.tensor), 1),
        "tensor": ((mesh.data, mesh.fsdp), mesh.tensor),
        "spread": ((mesh.data,), mesh.fsdp * mesh.tensor),
    }[layout]
    while rows % math.prod(along):
        along = along[:-1]
    return mesh._replace(data=math.prod(along), fsdp=1, tensor=tensor)


class Array(NamedTuple):
    """`copies` arrays of one shape, whose dimensions carry logical axes."""

    part: str  # "embedding", "encoder", "decoder", "logits" or "small"
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    copies: int

    @property
    def size(self) -> int:
        """Numbers in all of them."""
        return self.copies * math.prod(self.shape)

    def on_chip(self, mesh: Mesh) -> int:
        """Numbers of them that one chip holds."""
        cuts = math.prod(map(mesh.cuts, self.shape, self.axes))
        return self.copies * (math.prod(self.shape) // cuts)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A T5's widths, of all of it or of what one chip computes of it.

    Attributes:
      embed: E, of the residual stream.
      joined: J, heads times the width of a head.
      heads: H.
      mlp: M.
      inputs: matrices into the MLP, 2 in T5 1.1.
      encoder_layers, decoder_layers: how many.
      vocabulary: V.
      tied: whether logits come from the embedding.
      itemsize: bytes of an activation.
    """

    embed: int
    joined: int
    heads: int
    mlp: int
    inputs: int
    encoder_layers: int
    decoder_layers: int
    vocabulary: int
    tied: bool
    itemsize: int

    @classmethod
    def of(cls, config: T5Config, mesh: Mesh = ALONE) -> "Sizes":
        """Of `config`; with a mesh what a chip computes: the tensor axis cuts J, M and V."""
        joined = config.num_heads * config.head_dim
        return cls(
            embed=config.emb_dim,
            joined=joined // mesh.cuts(joined, "joined_kv"),
            heads=config.num_heads // mesh.cuts(config.num_heads, "heads"),
            mlp=config.mlp_dim // mesh.cuts(config.mlp_dim, "mlp"),
            inputs=len(config.mlp_activations),
            encoder_layers=config.num_encoder_layers,
            decoder_layers=config.num_decoder_layers,
            vocabulary=config.vocab_size // mesh.cuts(config.vocab_size, "vocab"),
            tied=config.logits_via_embedding,
            itemsize=2 if config.dtype == "bfloat16" else 4,
        )


def arrays(config: T5Config) -> Iterator[Array]:
    """The parameters of a T5, per layer."""
    embed, joined = config.emb_dim, config.num_heads * config.head_dim
    into, out = ("embed", "joined_kv"), ("joined_kv", "embed")
    yield Array("embedding", (config.vocab_size, embed), ("vocab", "embed"), 1)
    stacks = (("encoder", config.num_encoder_layers, 1), ("decoder", config.num_decoder_layers, 2))
    for stack, layers, attentions in stacks:
        yield Array(stack, (embed, joined), into, 3 * attentions * layers)
        yield Array(stack, (joined, embed), out, attentions * layers)
        inputs = len(config.mlp_activations)
        yield Array(stack, (embed, config.mlp_dim), ("embed", "mlp"), inputs * layers)
        yield Array(stack, (config.mlp_dim, embed), ("mlp", "embed"), layers)
        yield Array("small", (embed,), ("embed",), (attentions + 1) * layers + 1)
        buckets = (config.num_heads, config.relative_attention_num_buckets)
        yield Array("small", buckets, ("heads", "relpos_buckets"), 1)
    if not config.logits_via_embedding:
        yield Array("logits", (embed, config.vocab_size), ("embed", "vocab"), 1)


def parameters(config: T5Config) -> int:
    """How many numbers a T5 has."""
    return sum(array.size for array in arrays(config))


def stored_bytes(config: T5Config, mesh: Mesh, dtype: str = "float32") -> int:
    """What one chip holds of a network that is stored in `dtype`.

    `T5.frozen_params` casts kernels and the embedding, but leaves what computes in float32 alone:
    the output layer, scales and relative positions.
    """
    whole = {"logits", "small", *(("embedding",) if config.logits_via_embedding else ())}
    itemsize = 2 if dtype == "bfloat16" else 4
    return sum(
        array.on_chip(mesh) * (4 if array.part in whole else itemsize) for array in arrays(config)
    )


def part_sizes(config: T5Config, mesh: Mesh) -> Mapping[str, tuple[int, int]]:
    """Part of the network -> (numbers a chip holds, numbers it computes with once gathered).

    Gathered along `fsdp`, an array is cut along `tensor` alone.
    """
    gathered = Mesh(1, 1, mesh.tensor)
    found: dict[str, tuple[int, int]] = {}
    for array in arrays(config):
        held, used = found.get(array.part, (0, 0))
        found[array.part] = (held + array.on_chip(mesh), used + array.on_chip(gathered))
    return found


def adafactor_bytes(config: T5Config, mesh: Mesh, smallest: int = 128) -> int:
    """Of Adafactor's state on one chip: a row and a column for each matrix, float32.

    A matrix whose smaller dimension is below `smallest`, and every vector, has a full second moment
    instead. What optax keeps in place of the moment that an array has not is one number.
    """
    held = 0
    for array in arrays(config):
        shape, axes = array.shape, array.axes
        if len(shape) == 2 and min(shape) >= smallest:
            moments = sum(shape[i] // mesh.cuts(shape[i], axes[i]) for i in (0, 1))
            held += array.copies * (moments + 1)
        else:
            held += array.on_chip(mesh) + 2 * array.copies
    return 4 * held


def adamw_bytes(config: T5Config, mesh: Mesh) -> int:
    """Of AdamW's state on one chip: two moments of every number, float32."""
    return 2 * stored_bytes(config, mesh)
