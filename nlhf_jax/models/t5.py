"""T5 as a `LanguageModel`: encoder, decoder, cached decoding, and its two parameter layouts.

Per-layer layout: `encoder/layers_0/...`, as T5X checkpoints have it. Scanned layout
(`T5Config.scan_layers`): `encoder/layers/...` with a leading `layers` dimension on every array.
"""

import copy
import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn

from nlhf_jax.models.language_model import PyTree, SpecialTokens
from nlhf_jax.models.reading_init import reading_init
from nlhf_jax.models.t5_layers import (
    MASKED,
    DecoderLayer,
    Dense,
    Dropout,
    Embedding,
    EncoderLayer,
    RelativePositionBias,
    RMSNorm,
    T5Config,
    by_rows,
)
from nlhf_jax.sharding import alone_on_cpu, constrain, constrain_tree


@flax.struct.dataclass
class Context:
    """A prompt that was read: encodings `[B, S, E]` and key mask bias `[B, 1, 1, S]` float32."""

    encoded: jax.Array
    cross_bias: jax.Array


@flax.struct.dataclass
class Cache:
    """Per-layer keys and values, as a tuple: a stacked cache would be copied at every token."""

    layers: tuple[dict[str, jax.Array], ...]
    self_bias: jax.Array  # [H, T, T]: row t is the bias of the query at position t, causal
    cross_bias: jax.Array


def _layers(cls: type[nn.Module], config: T5Config, count: int):
    inputs = 2 if cls is EncoderLayer else 3
    if config.remat:  # A scan's body is compiled by itself: nothing there undoes it.
        cls = nn.remat(cls, prevent_cse=not config.scan_layers)
    if not config.scan_layers:
        return [cls(config) for _ in range(count)]
    return nn.scan(
        cls,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast,) * inputs,
        length=count,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )(config)


def _apply_layers(layers, x: jax.Array, *args: jax.Array) -> jax.Array:
    if not isinstance(layers, (list, tuple)):
        return layers(x, *args)[0]
    for layer in layers:
        x, _ = layer(x, *args)
    return x


class Encoder(nn.Module):
    config: T5Config

    def setup(self) -> None:
        self.relpos_bias = RelativePositionBias(self.config, bidirectional=True)
        self.layers = _layers(EncoderLayer, self.config, self.config.num_encoder_layers)
        self.encoder_norm = RMSNorm(self.config.dtype)
        self.dropout = Dropout(self.config.dropout_rate)

    def __call__(self, embedded: jax.Array, mask_bias: jax.Array) -> jax.Array:
        bias = self.relpos_bias(embedded.shape[1])
        x = _apply_layers(self.layers, self.dropout(embedded), bias, mask_bias)
        return self.dropout(self.encoder_norm(x))


class Decoder(nn.Module):
    config: T5Config

    def setup(self) -> None:
        cfg = self.config
        self.relpos_bias = RelativePositionBias(cfg, bidirectional=False)
        self.layers = _layers(DecoderLayer, cfg, cfg.num_decoder_layers)
        self.decoder_norm = RMSNorm(cfg.dtype)
        self.dropout = Dropout(cfg.dropout_rate)
        if not cfg.logits_via_embedding:
            axes, scale = ("embed", "vocab"), cfg.emb_dim**-0.5
            # Compute in the configured dtype is for the body; logits are float32.
            self.logits_dense = Dense(cfg.vocab_size, axes, scale, "float32")

    def causal_bias(self, length: int) -> jax.Array:
        causal = jnp.tril(jnp.ones((length, length), bool))
        return self.relpos_bias(length) + jnp.where(causal, 0.0, MASKED)

    def __call__(self, embedded: jax.Array, context: Context) -> jax.Array:
        bias = self.causal_bias(embedded.shape[1])
        x = self.dropout(embedded)
        x = _apply_layers(self.layers, x, context.encoded, bias, context.cross_bias)
        return self.dropout(self.decoder_norm(x))

    def start(self, context: Context, streams: int, length: int) -> Cache:
        cfg = self.config
        batch = context.encoded.shape[0]
        shape = (batch * streams, cfg.num_heads, length, cfg.head_dim)
        caches = []
        for layer in self.layers:
            keys, values = layer.cross_keys_values(context.encoded)
            empty = constrain(jnp.zeros(shape, cfg.dtype), "batch", "heads", None, None)
            caches.append(
                {
                    "cross_keys": constrain(keys, "batch", "heads", None, None),
                    "cross_values": constrain(values, "batch", "heads", None, None),
                    "self_keys": empty,
                    "self_values": empty,
                }
            )
        return Cache(tuple(caches), self.causal_bias(length)[0], context.cross_bias)

    def step(
        self, embedded: jax.Array, cache: Cache, position: jax.Array
    ) -> tuple[jax.Array, Cache]:
        bias = jax.lax.dynamic_slice_in_dim(cache.self_bias, position, 1, axis=1)
        x, caches = embedded, []
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            x, layer_cache = layer.decode_step(x, layer_cache, position, bias, cache.cross_bias)
            caches.append(layer_cache)
        return self.decoder_norm(x), dataclasses.replace(cache, layers=tuple(caches))


class T5Network(nn.Module):
    """The parameters of a T5 and the five ways to run them."""

    config: T5Config

    def setup(self) -> None:
        self.token_embedder = Embedding(self.config)
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    def _logits(self, x: jax.Array) -> jax.Array:
        if self.config.logits_via_embedding:
            return self.token_embedder.tied_logits(x)
        return self.decoder.logits_dense(x)

    def encode(self, inputs: jax.Array) -> Context:
        bias = jnp.where(inputs != self.config.pad_id, 0.0, MASKED)[:, None, None, :]
        embedded = constrain(self.token_embedder(inputs), "batch", None, None)
        return Context(self.encoder(embedded, bias), bias)

    def logits(self, context: Context, targets: jax.Array) -> jax.Array:
        start = self.config.start_id
        decoder_inputs = jnp.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=start)
        embedded = constrain(self.token_embedder(decoder_inputs), "batch", None, None)
        return self._logits(self.decoder(embedded, context))

    def start(self, context: Context, streams: int, length: int) -> Cache:
        return self.decoder.start(context, streams, length)

    def step(self, cache: Cache, position: jax.Array, tokens: jax.Array) -> tuple[jax.Array, Cache]:
        x, cache = self.decoder.step(self.token_embedder(tokens), cache, position)
        return self._logits(x), cache

    def __call__(self, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        return self.logits(self.encode(inputs), targets)


class T5:
    """A `LanguageModel` (see there for shapes) over the parameters of a T5."""

    def __init__(self, config: T5Config):
        self.config = config
        self.vocab_size = config.vocab_size
        self._network = T5Network(config)
        # Decoding is always unrolled over layers: per-layer caches are updated in place.
        self._unrolled = T5Network(dataclasses.replace(config, scan_layers=False, remat=False))
        self._rngs: dict[str, jax.Array] = {}

    @property
    def tokens(self) -> SpecialTokens:
        return SpecialTokens(self.config.pad_id, self.config.eos_id, self.config.start_id)

    def description(self) -> dict[str, Any]:
        settings = dataclasses.asdict(self.config)
        for name in ("remat", "dropout_rate", "reading_init"):
            del settings[name]  # How a run trains: nothing of the network.
        return {"family": "t5", **settings}

    def init(self, rng: jax.Array) -> PyTree:
        # Drawn per layer and then stacked, so that both layouts start from the same numbers.
        params = nn.meta.unbox(_boxed_params(self._unrolled, rng))
        if self.config.reading_init:
            params = reading_init(params, self.config.head_dim)
        return self.from_per_layer(params)

    def logical_axes(self, per_layer: bool = False) -> PyTree:
        return _logical_axes(self._unrolled if per_layer else self._network)

    def per_layer(self, params: PyTree) -> PyTree:
        return unstack_layers(params)

    def from_per_layer(self, params: PyTree, join: Callable = jnp.stack) -> PyTree:
        return stack_layers(params, join) if self.config.scan_layers else params

    def with_dropout(self, key: jax.Array) -> "T5":
        if not self.config.dropout_rate:
            return self
        other = copy.copy(self)
        other._rngs = {"dropout": key}
        return other

    def _apply(self, network: T5Network, params: PyTree, method: str, *arguments: Any) -> Any:
        return network.apply({"params": params}, *arguments, method=method, rngs=self._rngs)

    def encode(self, params: PyTree, inputs: jax.Array) -> Context:
        return self._apply(self._network, params, "encode", inputs)

    def logits(self, params: PyTree, context: Context, targets: jax.Array) -> jax.Array:
        return self._apply(self._network, params, "logits", context, targets)

    def frozen_params(self, params: PyTree, dtype: str) -> PyTree:
        """Stored in the dtype of activations, they give the same numbers as in float32."""
        used_in_float32 = ["decoder/logits_dense/kernel"]
        if self.config.logits_via_embedding:
            used_in_float32.append("token_embedder/embedding")

        def cast(path, x):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            kept = name in used_in_float32 or not name.endswith(("/kernel", "/embedding"))
            return x if kept else x.astype(dtype)

        return jax.tree_util.tree_map_with_path(cast, params)

    def fresh_last_logits(self, params: PyTree, rng: jax.Array, count: int) -> PyTree:
        """Of tied embeddings, whose rows are tokens' as well, the last ones lose their meaning."""
        shape = (self.config.emb_dim, count)
        drawn = 0.3 * self.config.emb_dim**-0.5 * jax.random.normal(rng, shape)
        drawn = drawn.at[:, 0].set(0.0)

        def anew(path, x):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if name == "decoder/logits_dense/kernel":
                return x.at[:, -count:].set(drawn)
            tied = self.config.logits_via_embedding and name == "token_embedder/embedding"
            return x.at[-count:].set(drawn.T) if tied else x

        return jax.tree_util.tree_map_with_path(anew, params)

    def decoding_params(self, params: PyTree) -> PyTree:
        # Cast once, not at every token; and gathered in that dtype. Nothing here reads an encoder.
        params = self.frozen_params(unstack_layers(params), self.config.dtype)
        del params["encoder"]
        axes = self.logical_axes(per_layer=True)
        params = constrain_tree(params, {part: axes[part] for part in params})
        return by_rows(params) if alone_on_cpu() else params

    def start_decoding(self, params: PyTree, context: Context, streams: int, length: int) -> Cache:
        return self._apply(self._unrolled, params, "start", context, streams, length)

    def decode_step(
        self, params: PyTree, cache: Cache, position: jax.Array, tokens: jax.Array
    ) -> tuple[jax.Array, Cache]:
        return self._apply(self._unrolled, params, "step", cache, position, tokens)


def _boxed_params(network: T5Network, rng: jax.Array) -> PyTree:
    one = jnp.ones((1, 1), jnp.int32)
    return network.init(rng, one, one)["params"]


@functools.cache
def _logical_axes(network: T5Network) -> PyTree:
    boxed = jax.eval_shape(functools.partial(_boxed_params, network), jax.random.key(0))
    return jax.tree.map(
        lambda leaf: leaf.names, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)
    )


def stack_layers(params: PyTree, join: Callable = jnp.stack) -> PyTree:
    """Per-layer parameters (`layers_0`, `layers_1`, ...) to the scanned layout (`layers`)."""
    params = dict(params)
    for stack in ("encoder", "decoder"):
        layers = {k: v for k, v in params[stack].items() if re.fullmatch(r"layers_\d+", k)}
        ordered = [layers[f"layers_{i}"] for i in range(len(layers))]
        rest = {k: v for k, v in params[stack].items() if k not in layers}
        params[stack] = rest | {"layers": jax.tree.map(lambda *x: join(x), *ordered)}
    return params


def unstack_layers(params: PyTree) -> PyTree:
    """The inverse of `stack_layers`; parameters that are per layer already stay as they are."""
    params = dict(params)
    for stack in ("encoder", "decoder"):
        rest = dict(params[stack])
        stacked = rest.pop("layers", None)
        if stacked is None:
            continue
        count = jax.tree.leaves(stacked)[0].shape[0]
        layers = {f"layers_{i}": jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(count)}
        params[stack] = rest | layers
    return params
