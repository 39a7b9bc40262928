"""What the learners know of a language model.

A family of models joins by implementing `LanguageModel`; learners, rollouts and raters use nothing
else. Letters in shapes: B prompts, S prompt tokens, G response streams of one prompt (for example
y and y'), T response tokens, V vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from nlhf_jax.sharding import constrain_tree

PyTree = Any


class SpecialTokens(NamedTuple):
    """Ids of the tokens that mean something to a rollout. The defaults are T5's.

    Attributes:
      pad: fills prompts on the right, and responses after their end.
      eos: ends prompts and responses.
      start: what a decoder reads before a response's first token.
    """

    pad: int = 0
    eos: int = 1
    start: int = 0


T5_TOKENS = SpecialTokens()


class LanguageModel(Protocol):
    """A conditional distribution over token sequences, given a prompt.

    A family that derives from this class gets the methods that have a body here, which are right
    for parameters in one layout only.

    Attributes:
      vocab_size: V, the number of rows of the embedding and of logits.

    Tokens are int32. Prompts end with `tokens.eos` and are padded on the right with `tokens.pad`.
    Logits are float32. A response is decoded from `tokens.start`, and ends with and includes its
    first `tokens.eos`.
    """

    vocab_size: int

    @property
    def tokens(self) -> SpecialTokens:
        """Padding, end and start."""
        return T5_TOKENS

    def init(self, rng: jax.Array) -> PyTree:
        """Random float32 parameters."""

    def logical_axes(self, per_layer: bool = False) -> PyTree:
        """A tuple of axis names for each array of the parameters, or of `per_layer` of them.

        Here: no names, so that every device has a whole copy.
        """
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        return jax.tree.map(lambda leaf: (None,) * leaf.ndim, shapes)

    def per_layer(self, params: PyTree) -> PyTree:
        """The tree with one array for each layer and kind of parameter: what optimisers see."""
        return params

    def from_per_layer(self, params: PyTree, join: Callable = jnp.stack) -> PyTree:
        """The inverse of `per_layer`; `join` puts arrays together along a new first dimension."""
        return params

    def description(self) -> dict[str, Any]:
        """JSON-able settings from which `models.registry` builds the same model again."""

    def encode(self, params: PyTree, inputs: jax.Array) -> PyTree:
        """Reads prompts `[B, S]` into a context, a pytree of arrays with leading axis B."""

    def logits(self, params: PyTree, context: PyTree, targets: jax.Array) -> jax.Array:
        """Teacher-forced logits `[B, T, V]` at every position of targets `[B, T]`."""

    def start_decoding(self, params: PyTree, context: PyTree, streams: int, length: int) -> PyTree:
        """Caches for `streams` responses of at most `length` tokens to each prompt."""

    def decode_step(
        self, params: PyTree, cache: PyTree, position: jax.Array, tokens: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        """Logits `[B, G, V]` after the tokens `[B, G]` at the int32 scalar `position`, and caches.

        `tokens` are the decoder's inputs: the start token at position 0, then the previous tokens.
        """

    def frozen_params(self, params: PyTree, dtype: str) -> PyTree:
        """What a network that is not trained stores of float32 parameters, to save memory.

        Here: all of them in `dtype`. A family whose layers cast some parameters to the dtype of
        activations, and compute with the others in float32, leaves the others as they are.
        """
        return jax.tree.map(lambda x: x.astype(dtype), params)

    def with_dropout(self, key: jax.Array) -> "LanguageModel":
        """This model as it is trained: `encode` and `logits` drop features, drawn from `key`.

        Here: itself, of a family without dropout.
        """
        return self

    def fresh_last_logits(self, params: PyTree, rng: jax.Array, count: int) -> PyTree:
        """Parameters of a network whose last `count` logits are to mean something else from now on.

        The first of those is 0 at every token, the others are small and random. Here: as they are,
        of a family that has no such weights of its own.
        """
        return params

    def decoding_params(self, params: PyTree) -> PyTree:
        """Parameters in the form that `start_decoding` and `decode_step` take, made once a loop.

        Pinned with `sharding.constrain` to where the mesh that is active wants them: in a rollout
        that is its layout for decoding.
        """
        return constrain_tree(params, self.logical_axes())


def response_mask(responses: jax.Array | np.ndarray, eos: int) -> jax.Array:
    """Which tokens of responses `[..., T]` belong to them: float32, 1 up to and including `eos`.

    A response without EOS fills its whole length. Padding before EOS counts: a model can sample
    that token like any other, and the loss must score what was sampled.
    """
    ended_before = jnp.cumsum(responses == eos, axis=-1) - (responses == eos) > 0
    return (~ended_before).astype(jnp.float32)


def encode_once(model: LanguageModel, params: PyTree, inputs: jax.Array) -> tuple[PyTree, Callable]:
    """What `model.encode` gives, and its pullback (see `jax.vjp`): for `encoded`."""
    return jax.vjp(lambda params: model.encode(params, inputs), params)


def encoded(
    model: LanguageModel,
    params: PyTree,
    inputs: jax.Array,
    before: tuple[PyTree, Callable] | None = None,
) -> PyTree:
    """`model.encode(params, inputs)`, also for its gradient.

    It costs nothing where `before` has what `encode_once` made of the same: then one reading of the
    prompts serves a rollout and the gradient after it.
    """
    return model.encode(params, inputs) if before is None else _encoded_before(params, *before)


@jax.custom_vjp
def _encoded_before(params: PyTree, context: PyTree, pullback: Callable) -> PyTree:
    del params, pullback
    return context


_encoded_before.defvjp(
    lambda params, context, pullback: (context, pullback),
    lambda pullback, gradient: (*pullback(gradient), None, None),
)


def logits_of_streams(
    model: LanguageModel, params: PyTree, context: PyTree, responses: jax.Array
) -> jax.Array:
    """Teacher-forced logits `[B, G, T, V]` of responses `[B, G, T]` to prompts that were read."""
    streams = responses.shape[1]
    # A prompt's responses are neighbours, so they stay on the device that has it.
    context = jax.tree.map(lambda x: jnp.repeat(x, streams, axis=0), context)
    logits = model.logits(params, context, responses.reshape(-1, responses.shape[-1]))
    return logits.reshape(*responses.shape, -1)


def logits_after(
    model: LanguageModel, params: PyTree, context: PyTree, responses: jax.Array
) -> jax.Array:
    """Logits `[B, G, T, V]` after each token of responses `[B, G, T]` to B contexts was read.

    What a response's last token adds is in them, unlike in those that predict its tokens.
    """
    # The logits at a position are those before its token: of one position more, all but the first.
    read = jnp.pad(responses, ((0, 0), (0, 0), (0, 1)))
    return logits_of_streams(model, params, context, read)[:, :, 1:]


def token_log_probs(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """log p(target) in nats, float32 `[B, T]`, from logits `[B, T, V]` and targets `[B, T]`."""
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def drawn_tokens(key: jax.Array, logits: jax.Array) -> jax.Array:
    """A token of probability softmax(logits): float32 `[..., V]` to int32 `[...]`.

    By inversion: a block of tokens by one uniform number, then a token of it by another. The argmax
    of logits plus Gumbel noise would take V random numbers and twice as many logarithms; one
    inversion over all V would round off rare tokens.
    """
    count = logits.shape[-1]
    blocks = 2 ** (count.bit_length() // 2)
    width = -(-count // blocks)
    filled = [(0, 0)] * (logits.ndim - 1) + [(0, blocks * width - count)]
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.pad(weights, filled).reshape(*logits.shape[:-1], blocks, width)
    uniform = jax.random.uniform(key, (*logits.shape[:-1], 2))
    block = _inverse(jnp.sum(weights, axis=-1), uniform[..., 0])
    chosen = jnp.take_along_axis(weights, block[..., None, None], axis=-2)[..., 0, :]
    return block * width + _inverse(chosen, uniform[..., 1])


def _inverse(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """The first index up to which weights `[..., N]` sum to more than a share of all, in [0, 1)."""
    sums = jnp.cumsum(weights, axis=-1)
    return jnp.sum(sums <= uniform[..., None] * sums[..., -1:], axis=-1, dtype=jnp.int32)
