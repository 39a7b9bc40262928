"""The layers of T5 1.1 and T5 1.0 in Flax linen, with T5X's parameter names and shapes.

Raffel et al. 2020 (T5), Shazeer 2020 (gated GELU), Roberts et al. 2022 (T5X, whose names these
are).
Conventions that differ from other transformers: RMS norm without bias, before each block; attention
logits are not divided by sqrt(head_dim); position enters only as a bias on self-attention logits.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from nlhf_jax.models.language_model import PyTree
from nlhf_jax.sharding import constrain

# Added to the logits of masked keys. Finite, so that a row without any key gives no NaN.
MASKED = -1e10
# The name of a matrix that is stored `[features, in]`, in place of "kernel": see `by_rows`.
BY_ROWS = "rows"


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes and conventions of a T5. The defaults are T5 1.1; `relu` and tied logits are T5 1.0."""

    vocab_size: int
    emb_dim: int
    num_heads: int
    head_dim: int
    mlp_dim: int
    num_encoder_layers: int
    num_decoder_layers: int
    mlp_activations: Sequence[str] = ("gelu", "linear")
    logits_via_embedding: bool = False  # T5 1.0: output tied to the embedding and scaled
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    dtype: str = "float32"  # of activations; parameters, softmax and logits are float32
    scan_layers: bool = False  # one stacked array per kind of parameter: compiles faster
    remat: bool = False  # of a layer keep its input alone, and compute the rest again for gradients
    dropout_rate: float = 0.0  # of what is trained; see `Dropout`
    reading_init: bool = False  # see `reading_init`
    pad_id: int = 0
    eos_id: int = 1
    start_id: int = 0  # what the decoder reads first

    def __post_init__(self):
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))


def _parameter(module: nn.Module, name: str, init, shape: tuple[int, ...], axes: tuple[str, ...]):
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


def _normal(scale: float) -> Callable:
    return nn.initializers.normal(stddev=scale)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-6) * scale, computed in float32."""

    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = _parameter(self, "scale", nn.initializers.ones_init(), (x.shape[-1],), ("embed",))
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
        return (x * scale).astype(self.dtype)


class Dropout(nn.Module):
    """Zeros a share of the features, the same ones at all positions of a row, as T5 does.

    Nothing where the network is run without a key: in rollouts, in rating, in evaluation.
    """

    rate: float

    def drops(self) -> bool:
        return self.rate > 0 and self.has_rng("dropout")

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if not self.drops():
            return x
        return nn.Dropout(self.rate, broadcast_dims=(-2,))(x, deterministic=False)


class Dense(nn.Module):
    """A matrix without bias: `[..., in] -> [..., features]`."""

    features: int
    axes: tuple[str, str]
    init_scale: float
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.has_variable("params", BY_ROWS):
            rows: jax.Array = self.get_variable("params", BY_ROWS).astype(self.dtype)
            # Weights on the left and rows turned, which the barriers keep XLA from undoing: it
            # multiplies a wide matrix by few columns without rearranging the matrix for that.
            columns = jax.lax.optimization_barrier(x.astype(self.dtype).reshape(-1, x.shape[-1]).T)
            turned = jax.lax.optimization_barrier(rows @ columns)
            return turned.T.reshape(*x.shape[:-1], self.features)
        shape = (x.shape[-1], self.features)
        kernel = _parameter(self, "kernel", _normal(self.init_scale), shape, self.axes)
        rows = x.astype(self.dtype).reshape(-1, x.shape[-1])
        return (rows @ kernel.astype(self.dtype)).reshape(*x.shape[:-1], self.features)


def by_rows(params: PyTree) -> PyTree:
    """Parameters whose matrices are turned, for products with the few rows of a decode step.

    A CPU reads each output's weights in one go then, and takes four fifths of the time.
    """
    if not isinstance(params, Mapping):
        return params
    turned = {BY_ROWS: params["kernel"].T} if "kernel" in params else {}
    return turned | {name: by_rows(part) for name, part in params.items() if name != "kernel"}


class Embedding(nn.Module):
    """Token embedding `[V, E]`, which T5 1.0 also uses as its output layer."""

    config: T5Config

    def setup(self) -> None:
        shape = (self.config.vocab_size, self.config.emb_dim)
        self.embedding = _parameter(self, "embedding", _normal(1.0), shape, ("vocab", "embed"))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        # Whole rows: the batch is cut along `fsdp` too, which a row cannot be at the same time.
        table = constrain(self.embedding, "vocab", None)
        return jnp.take(table, tokens, axis=0).astype(self.config.dtype)

    def tied_logits(self, x: jax.Array) -> jax.Array:
        scaled = x * self.config.emb_dim**-0.5
        return jnp.matmul(scaled, self.embedding.T, preferred_element_type=jnp.float32)


def relative_position_bucket(
    relative_position: np.ndarray, bidirectional: bool, num_buckets: int, max_distance: int
) -> np.ndarray:
    """Bucket of `key position - query position`: exact when near, logarithmic when far (T5, 2.1).

    Bidirectional buckets spend their upper half on keys after the query; causal ones treat those
    as distance 0.
    """
    bucket = np.zeros_like(relative_position)
    if bidirectional:
        num_buckets //= 2
        bucket = (relative_position > 0) * num_buckets
        distance = np.abs(relative_position)
    else:
        distance = np.maximum(-relative_position, 0)
    exact = num_buckets // 2
    # float32 throughout, as in T5X: the truncation below is sensitive to the last bit.
    ratio = np.log(distance.astype(np.float32) / exact + np.finfo(np.float32).eps)
    far = exact + (ratio / np.float32(math.log(max_distance / exact)) * (num_buckets - exact))
    far = np.minimum(far.astype(np.int32), num_buckets - 1)
    return bucket + np.where(distance < exact, distance, far)


class RelativePositionBias(nn.Module):
    """The bias `[1, H, Q, K]` on the attention logits of every self-attention layer of a stack."""

    config: T5Config
    bidirectional: bool

    @nn.compact
    def __call__(self, length: int) -> jax.Array:
        cfg = self.config
        shape = (cfg.num_heads, cfg.relative_attention_num_buckets)
        table = _parameter(
            self, "rel_embedding", _normal(cfg.emb_dim**-0.5), shape, ("heads", "relpos_buckets")
        )
        bucket = relative_position_bucket(
            np.arange(1 - length, length, dtype=np.int32),
            self.bidirectional,
            cfg.relative_attention_num_buckets,
            cfg.relative_attention_max_distance,
        )
        return by_distance(table[:, bucket])[None]


def by_distance(values: jax.Array) -> jax.Array:
    """`[H, 2 L - 1]`, of key positions 1 - L to L - 1 after the query, to `[H, L, L]`: `[h, q, k]`.

    Each row is the one before it, moved right by one: what a vector repeated without a gap is when
    it is cut into rows one shorter than itself. The gradient is a sum over rows; that of a gather
    of L^2 elements would be a scatter of as many.
    """
    heads, length = values.shape[0], (values.shape[1] + 1) // 2
    repeated = jnp.tile(jnp.pad(values, ((0, 0), (0, 1))), (1, length))
    rows = repeated[:, :-length].reshape(heads, length, 2 * length - 1)
    return rows[:, :, length - 1 :]


def _attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *biases: jax.Array,
    dropped: Callable[[jax.Array], jax.Array] = lambda weights: weights,
) -> jax.Array:
    batch = tuple(range(queries.ndim - 2))
    last = queries.ndim - 1
    logits = jax.lax.dot_general(queries, keys, (((last,), (last,)), (batch, batch)))
    logits = logits.astype(jnp.float32)
    weights = dropped(jax.nn.softmax(sum(biases, start=logits), axis=-1))
    return weights.astype(values.dtype) @ values


def _attend_as_two(queries: jax.Array, *rest: jax.Array) -> jax.Array:
    """Of one query, as if there were two: the same numbers, faster except on a CPU.

    XLA gives a matrix times a matrix to a TPU's matrix unit, and a matrix times a vector to its
    vector unit; on a GPU it has better kernels for the first. The barriers keep it from seeing
    through this.
    """
    pair = jax.lax.optimization_barrier(jnp.concatenate([queries, queries], axis=-2))
    return jax.lax.optimization_barrier(_attend(pair, *rest))[..., :1, :]


def _written(cache: jax.Array, new: jax.Array, position: jax.Array) -> jax.Array:
    """`[..., T, D]` with `[..., 1, D]` at a position that is the same for all, in place."""
    return jax.lax.dynamic_update_slice_in_dim(cache, new, position, axis=cache.ndim - 2)


_write = jax.custom_batching.custom_vmap(_written)


@_write.def_vmap
def _write_for_all(size: int, batched: list[bool], *operands: jax.Array) -> tuple[jax.Array, bool]:
    """JAX's own rule makes a scatter of it, which is slower on a TPU."""
    del size
    if batched == [True, True, False]:
        return _write(*operands), True
    return jax.vmap(_written, [0 if each else None for each in batched])(*operands), True


class Attention(nn.Module):
    """Multi-head attention without scaling. Heads are split from one `joined_kv` dimension."""

    config: T5Config

    def setup(self) -> None:
        cfg = self.config
        joined = cfg.num_heads * cfg.head_dim
        into, out = ("embed", "joined_kv"), ("joined_kv", "embed")
        # Mesh TensorFlow's initialisation: 1/sqrt(head_dim) is folded into the query kernel.
        self.query = Dense(joined, into, (cfg.emb_dim * cfg.head_dim) ** -0.5, cfg.dtype)
        self.key = Dense(joined, into, cfg.emb_dim**-0.5, cfg.dtype)
        self.value = Dense(joined, into, cfg.emb_dim**-0.5, cfg.dtype)
        self.out = Dense(cfg.emb_dim, out, joined**-0.5, cfg.dtype)
        self.dropout = Dropout(cfg.dropout_rate)

    def _split(self, x: jax.Array) -> jax.Array:
        """`[..., L, H * D]` to `[..., H, L, D]`: plain batched matrix products from here on."""
        x = x.reshape(*x.shape[:-1], self.config.num_heads, self.config.head_dim)
        return x.swapaxes(-2, -3)

    def keys_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`[..., K, E]` to keys and values `[..., H, K, D]`."""
        return self._split(self.key(x)), self._split(self.value(x))

    def __call__(
        self, x: jax.Array, keys: jax.Array, values: jax.Array, *biases: jax.Array
    ) -> jax.Array:
        """Queries `[..., Q, E]`, keys and values `[..., H, K, D]`, biases like `[..., H, Q, K]`.

        The sum of the biases may be larger than each of them; it is never made.
        """
        operands = (self._split(self.query(x)), keys, values, *biases)
        if self.dropout.drops():
            mixed = _attend(*operands, dropped=self.dropout)
        elif x.shape[-2] == 1:
            mixed = jax.lax.platform_dependent(*operands, cpu=_attend, default=_attend_as_two)
        else:
            mixed = _attend(*operands)
        return self.out(mixed.swapaxes(-2, -3).reshape(*x.shape[:-1], -1))


class MLP(nn.Module):
    """T5 1.1: gelu(x wi_0) * (x wi_1); T5 1.0: relu(x wi); then wo."""

    config: T5Config

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.config
        hidden: Any = None
        for i, activation in enumerate(cfg.mlp_activations):
            name = "wi" if len(cfg.mlp_activations) == 1 else f"wi_{i}"
            part = Dense(cfg.mlp_dim, ("embed", "mlp"), cfg.emb_dim**-0.5, cfg.dtype, name=name)(x)
            part = part if activation == "linear" else getattr(nn, activation)(part)
            hidden = part if hidden is None else hidden * part
        hidden = constrain(hidden, "batch", *(None,) * (x.ndim - 2), "mlp")
        hidden = Dropout(cfg.dropout_rate)(hidden)
        return Dense(cfg.emb_dim, ("mlp", "embed"), cfg.mlp_dim**-0.5, cfg.dtype, name="wo")(hidden)


class EncoderLayer(nn.Module):
    config: T5Config

    def setup(self) -> None:
        self.pre_attention_layer_norm = RMSNorm(self.config.dtype)
        self.attention = Attention(self.config)
        self.pre_mlp_layer_norm = RMSNorm(self.config.dtype)
        self.mlp = MLP(self.config)
        self.dropout = Dropout(self.config.dropout_rate)

    def __call__(
        self, x: jax.Array, bias: jax.Array, mask_bias: jax.Array
    ) -> tuple[jax.Array, None]:
        """`[B, S, E]` to the same; the None is what a scan over layers expects beside it."""
        y = self.pre_attention_layer_norm(x)
        x = x + self.dropout(self.attention(y, *self.attention.keys_values(y), bias, mask_bias))
        x = x + self.dropout(self.mlp(self.pre_mlp_layer_norm(x)))
        return constrain(x, "batch", None, None), None


class DecoderLayer(nn.Module):
    config: T5Config

    def setup(self) -> None:
        self.pre_self_attention_layer_norm = RMSNorm(self.config.dtype)
        self.self_attention = Attention(self.config)
        self.pre_cross_attention_layer_norm = RMSNorm(self.config.dtype)
        self.encoder_decoder_attention = Attention(self.config)
        self.pre_mlp_layer_norm = RMSNorm(self.config.dtype)
        self.mlp = MLP(self.config)
        self.dropout = Dropout(self.config.dropout_rate)

    def __call__(
        self, x: jax.Array, encoded: jax.Array, self_bias: jax.Array, cross_bias: jax.Array
    ) -> tuple[jax.Array, None]:
        """`[B, T, E]` and encodings `[B, S, E]` to `[B, T, E]`."""
        y = self.pre_self_attention_layer_norm(x)
        x = x + self.dropout(self.self_attention(y, *self.self_attention.keys_values(y), self_bias))
        x = self._after_self_attention(x, *self.cross_keys_values(encoded), cross_bias)
        return constrain(x, "batch", None, None), None

    def cross_keys_values(self, encoded: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.encoder_decoder_attention.keys_values(encoded)

    def decode_step(
        self,
        x: jax.Array,
        cache: dict[str, jax.Array],
        position: jax.Array,
        self_bias: jax.Array,
        cross_bias: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """One token of G streams, `[B, G, E]`; returns the same shape and the caches.

        The streams of a prompt are queries of one cross-attention, so that its keys and values
        exist once; in self-attention each stream has its own, `[B * G, H, T, D]`.
        """
        # A row a stream, without a dimension for streams: where that is 1, XLA would drop it before
        # it reads a cache, and copy the cache for that.
        y = self.pre_self_attention_layer_norm(x).reshape(-1, 1, x.shape[-1])
        key, value = self.self_attention.keys_values(y)
        keys = _write(cache["self_keys"], key, position)
        values = _write(cache["self_values"], value, position)
        x = x + self.self_attention(y, keys, values, self_bias).reshape(x.shape)
        x = self._after_self_attention(x, cache["cross_keys"], cache["cross_values"], cross_bias)
        return x, cache | {"self_keys": keys, "self_values": values}

    def _after_self_attention(self, x, cross_keys, cross_values, cross_bias):
        y = self.pre_cross_attention_layer_norm(x)
        y = self.encoder_decoder_attention(y, cross_keys, cross_values, cross_bias)
        x = x + self.dropout(y)
        return x + self.dropout(self.mlp(self.pre_mlp_layer_norm(x)))
