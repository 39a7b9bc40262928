"""What a pass through a T5 costs, in closed form: FLOPs of its products, and bytes of memory.

Letters: n rows (sequences), S prompt tokens, T response tokens, E, J, M, V as in `sizes.Sizes`, w
matrices into the MLP, L layers. A product of `[a, b]` and `[b, c]` is 2 a b c FLOPs. What is not a
matrix product (norms, softmax, activations) is not counted: 1 to 3 % of a T5 of published size.

All functions are of what one chip computes: its rows, and `Sizes.of(config, mesh)`.
"""

from typing import NamedTuple

from nlhf_jax.planning.sizes import Sizes


class Bytes(NamedTuple):
    """Traffic of a chip's memory, as little and as much as a compiler makes of the same work."""

    least: float
    most: float

    def __add__(self, other: object) -> "Bytes":
        assert isinstance(other, Bytes)
        return Bytes(self.least + other.least, self.most + other.most)

    def times(self, factor: float) -> "Bytes":
        """So often the same."""
        return Bytes(self.least * factor, self.most * factor)


NOTHING = Bytes(0.0, 0.0)

# --- FLOPs ---------------------------------------------------------------------------------------


def mlp_flops(s: Sizes, tokens: float) -> float:
    """w products `[E, M]` and one `[M, E]` for each token."""
    return 2 * tokens * (s.inputs + 1) * s.embed * s.mlp


def encoder_flops(s: Sizes, rows: float, length: int) -> float:
    """A forward pass of the encoder over n rows of S tokens.

    For each layer and token: queries, keys, values and output, 4 products `[E, J]`; the MLP; and
    against S keys the logits and the mixture, 2 products of S J: n S (8 E J + 4 S J) + the MLP.
    """
    tokens = rows * length
    attention = tokens * (8 * s.embed * s.joined + 4 * length * s.joined)
    return s.encoder_layers * (attention + mlp_flops(s, tokens))


def cross_keys_flops(s: Sizes, rows: float, length: int) -> float:
    """Keys and values of the encodings for every decoder layer: 2 products `[E, J]` a token."""
    return s.decoder_layers * rows * length * 4 * s.embed * s.joined


def decoder_tokens_flops(s: Sizes, tokens: float, self_keys: int, cross_keys: int) -> float:
    """The decoder's layers for tokens that attend to so many keys each, already made or their own.

    Self-attention: 4 products `[E, J]` and 2 of `self_keys` J. Cross-attention: queries and output,
    2 products `[E, J]`, and 2 of `cross_keys` J. And the MLP.
    """
    attention = tokens * (12 * s.embed * s.joined + 4 * (self_keys + cross_keys) * s.joined)
    return s.decoder_layers * (attention + mlp_flops(s, tokens))


def logits_flops(s: Sizes, tokens: float) -> float:
    """One product `[E, V]` a token."""
    return 2 * tokens * s.embed * s.vocabulary


def decoder_flops(s: Sizes, rows: float, targets: int, length: int) -> float:
    """A teacher-forced pass of the decoder: n rows of T targets, each with a prompt of S tokens.

    Masked keys are computed as well: each token has all T.
    """
    return (
        cross_keys_flops(s, rows, length)
        + decoder_tokens_flops(s, rows * targets, targets, length)
        + logits_flops(s, rows * targets)
    )


def decode_step_flops(s: Sizes, streams: float, cache: int, length: int) -> float:
    """One token of each stream, whose cache has T places and whose prompt has S tokens."""
    return decoder_tokens_flops(s, streams, cache, length) + logits_flops(s, streams)


def gradient_flops(
    s: Sizes, prompts: float, rows: float, targets: int, length: int, remat: bool
) -> float:
    """Forward and backward of encoder and decoder; `prompts` are encoded for `rows` responses.

    Each product `y = x W` has two more in the backward pass, the gradients of x and of W, so that
    all is three times the forward pass. With `remat` the layers run once more, except for each
    layer's last product, of the MLP's output, which no gradient reads.
    """
    encoder = encoder_flops(s, prompts, length)
    decoder = decoder_flops(s, rows, targets, length)
    again = 0.0
    if remat:
        tokens = s.encoder_layers * prompts * length + s.decoder_layers * rows * targets
        again = encoder + decoder - logits_flops(s, rows * targets)
        again -= 2 * tokens * s.mlp * s.embed
    return 3 * (encoder + decoder) + again


# --- bytes of memory -----------------------------------------------------------------------------
# At least, what is small enough stays in a chip's caches (128 MB on a TPU): of activations what the
# backward pass comes back to, and logits over the vocabulary, reach its memory. At most, each
# product reads its operands from there and writes its result, each norm and residual is a pass of
# its own, and so are softmax's: logits are written, read for the maximum, for the sum and for the
# weights in float32, and the weights are written and read.

_SOFTMAX = 18  # bytes a logit: 2 + 4 written, 3 x 2 read, 2 x 2 for the weights, 2 for the mask
_ELEMENTWISE = 8  # passes over E a layer: norms and residuals, in float32 half of them


def layer_activation_bytes(s: Sizes, tokens: float, attentions: int, logits: float) -> float:
    """At most, of one layer: `attentions` of them a token, with so many attention logits in all.

    The products' operands and results are E + 3 J, J + E, E + w M and M + E a token.
    """
    products = attentions * (2 * s.embed + 4 * s.joined)
    products += 2 * s.embed + (s.inputs + 1) * s.mlp
    passes = _ELEMENTWISE * s.embed * (attentions + 1) / 2
    return tokens * s.itemsize * (products + passes) + _SOFTMAX * logits


def encoder_bytes(s: Sizes, rows: float, length: int) -> Bytes:
    """Activations of a forward pass of the encoder; at least its result is written."""
    logits = rows * s.heads * length * length
    layer = layer_activation_bytes(s, rows * length, 1, logits)
    return Bytes(rows * length * s.embed * s.itemsize, layer * s.encoder_layers)


def decoder_bytes(s: Sizes, rows: float, targets: int, length: int) -> Bytes:
    """Activations of a teacher-forced pass, and its logits: float32, read up to thrice.

    At most, cross-attention reads E a prompt token and writes and reads keys and values, 4 J.
    """
    tokens = rows * targets
    attention = rows * s.heads * targets * (targets + length)
    cross = rows * length * s.itemsize * (s.embed + 4 * s.joined)
    layer = layer_activation_bytes(s, tokens, 2, attention) + cross
    logits = 4 * tokens * s.vocabulary
    return Bytes(2 * logits, layer * s.decoder_layers + 4 * logits)


def cache_bytes(s: Sizes, prompts: float, streams: int, cache: int, length: int) -> float:
    """Keys and values that decoding keeps: 2 J a layer for S prompt tokens and T of each stream."""
    tokens = prompts * (length + streams * cache)
    return s.decoder_layers * 2 * s.joined * tokens * s.itemsize


def decode_weight_bytes(s: Sizes) -> float:
    """What a token reads of the decoder's weights: its layers, and the output layer in float32.

    8 matrices E J a layer but those of cross-attention's keys and values, which are made before.
    """
    layer = 6 * s.embed * s.joined + (s.inputs + 1) * s.embed * s.mlp
    return s.itemsize * s.decoder_layers * layer + 4 * s.embed * s.vocabulary


def decode_step_bytes(s: Sizes, prompts: float, streams: int, cache: int, length: int) -> Bytes:
    """One token: the weights and all keys and values once; logits are written, and read to draw.

    At most, the streams' own keys and values are also copied, where they are not updated in place.
    """
    read = decode_weight_bytes(s) + cache_bytes(s, prompts, streams, cache, length)
    logits = 4 * prompts * streams * s.vocabulary
    own = cache_bytes(s, prompts, streams, cache, 0)
    return Bytes(read + 2 * logits, read + 6 * logits + 2 * own)


def weight_bytes(held: int, used: int, itemsize: int, stored: int, passes: int) -> Bytes:
    """Weights of a part of a network in `passes` passes over it.

    A chip reads the numbers that it holds, of `stored` bytes; at least, they are cast to the dtype
    of activations, of `itemsize`, once. At most, for each pass those that it computes with, `used`,
    are written after they were gathered or cast, and read.
    """
    again = min(itemsize, stored)
    made = 0 if held == used and itemsize == stored else 2 * itemsize * used
    return Bytes(stored * held + again * held * (passes - 1), (stored * held + made) * passes)


def gradient_bytes(
    s: Sizes, prompts: float, rows: float, targets: int, length: int, remat: bool
) -> Bytes:
    """Activations forward and backward.

    At least, each layer's input is written and read, and logits are, with their gradient. At most,
    all of a forward pass is read twice more, or with `remat` thrice.
    """
    kept = s.encoder_layers * prompts * length + s.decoder_layers * rows * targets
    logits = 4 * rows * targets * s.vocabulary
    least = 2 * kept * s.embed * s.itemsize + 4 * logits
    forward = encoder_bytes(s, prompts, length) + decoder_bytes(s, rows, targets, length)
    return Bytes(least, forward.most * (4 if remat else 3))


def update_bytes(parameters: float, moments: float, kept: int) -> Bytes:
    """The optimiser: gradient, parameters and moments are read, and the last two written.

    At most there is one more pass each for the gradient's norm, its clipping, the update's RMS and
    the parameters', and for whether all is finite. Each kept set is read and written.
    """
    once = 4 * parameters * 3 + 2 * moments + kept * 4 * parameters * 2
    return Bytes(once, once + 4 * parameters * 10)
