"""Bytes that a chip sends to its neighbours, in closed form, and in how many collectives.

A collective over k chips sends and receives (k - 1) / k of what it makes (all-gather) or takes
apart (reduce-scatter), and both for an all-reduce, which is one after the other.

Collectives that come in the closed forms:
- along `fsdp`, weights are gathered before a pass, and gradients scattered after it;
- along `tensor`, what each attention and each MLP puts out is summed, in both directions;
- along `data`, the gradient is summed: over several slices first in each, then between them.
"""

from typing import NamedTuple

from nlhf_jax.planning.sizes import Mesh, Sizes


class Wire(NamedTuple):
    """What one chip sends, as little and as much as compilers make of it.

    Attributes:
      least, most: bytes.
      collectives: how many collective operations, each of which takes some time to start.
      between: bytes that it sends to other slices; `least` and `most` do not have them.
    """

    least: float
    most: float
    collectives: float
    between: float = 0.0

    def __add__(self, other: object) -> "Wire":
        assert isinstance(other, Wire)
        return Wire(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> "Wire":
        return Wire(*(factor * value for value in self))


NONE = Wire(0.0, 0.0, 0.0)


def share(chips: int) -> float:
    """(k - 1) / k."""
    return (chips - 1) / chips


def gathered_weights(used: int, arrays: int, mesh: Mesh, passes: int, itemsize: int) -> Wire:
    """Weights gathered along `fsdp`, `used` numbers of each chip once they are.

    At least once and in the dtype of activations; at most for each of the passes, in float32.
    """
    if mesh.fsdp == 1:
        return NONE
    once = share(mesh.fsdp) * used
    return Wire(itemsize * once, 4 * once * passes, arrays * passes)


def gradients(used: int, held: int, arrays: int, mesh: Mesh, parts: int) -> Wire:
    """The gradient, float32: scattered along `fsdp` for each of the microbatches, then summed along
    `data`, also at most for each of them."""
    found = NONE
    if mesh.fsdp > 1:
        scattered = 4 * share(mesh.fsdp) * used * parts
        # At most, an all-reduce whose result is cut.
        found += Wire(scattered, 2 * scattered, arrays * parts)
    inside = mesh.data // mesh.slices
    if inside > 1:
        summed = 2 * 4 * share(inside) * held
        found += Wire(summed, summed * parts, arrays * parts)
    if mesh.slices > 1:  # Of what a slice has summed each of its replicas takes a part outside.
        summed = 2 * 4 * share(mesh.slices) * held / inside
        found += Wire(0.0, 0.0, arrays * parts, summed * parts)
    return found


def layer_sums(s: Sizes, tokens: float, attentions: int, mesh: Mesh) -> Wire:
    """Of one layer's forward pass: `attentions` of them and the MLP sum E a token along `tensor`.

    In the dtype of activations, or at most in float32.
    """
    if mesh.tensor == 1:
        return NONE
    once = 2 * share(mesh.tensor) * tokens * s.embed * (attentions + 1)
    return Wire(s.itemsize * once, 4 * once, attentions + 1)


def embedded(s: Sizes, tokens: float, mesh: Mesh) -> Wire:
    """Rows of an embedding that is cut by words: each token's row is summed along `tensor`."""
    if mesh.tensor == 1:
        return NONE
    once = 2 * share(mesh.tensor) * tokens * s.embed
    return Wire(s.itemsize * once, 4 * once, 1)


def encoder_sums(s: Sizes, rows: float, length: int, mesh: Mesh) -> Wire:
    """A forward pass of the encoder, with its embedding."""
    tokens = rows * length
    return layer_sums(s, tokens, 1, mesh).times(s.encoder_layers) + embedded(s, tokens, mesh)


def decoder_sums(s: Sizes, rows: float, targets: int, mesh: Mesh) -> Wire:
    """A forward pass of the decoder, with its embedding."""
    tokens = rows * targets
    return layer_sums(s, tokens, 2, mesh).times(s.decoder_layers) + embedded(s, tokens, mesh)


def drawn_logits(s: Sizes, streams: float, mesh: Mesh) -> Wire:
    """One token's logits, float32 and cut by words, gathered along `tensor` to draw from them."""
    if mesh.tensor == 1:
        return NONE
    gathered = 4 * (mesh.tensor - 1) * streams * s.vocabulary  # V is already cut
    return Wire(gathered, gathered, 1)
