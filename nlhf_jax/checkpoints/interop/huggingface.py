"""Hugging Face T5 checkpoints (T5, T5 1.1, Flan-T5), read and written without `transformers`.

A directory with `config.json` and `model.safetensors`, or several such files and an index. Their
matrices are `[out, in]`, ours `[in, out]`.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from nlhf_jax.checkpoints.arrays import PyTree, StoredArray, Transposed, flattened, nested
from nlhf_jax.checkpoints.interop import safetensors
from nlhf_jax.checkpoints.stored import StoredCheckpoint
from nlhf_jax.data.vocabularies import Vocabulary
from nlhf_jax.errors import UserError

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_VOCABULARY = "spiece.model"
_FILE_NAME = re.compile(r"\w[\w.-]{0,200}")  # never a path to somewhere else
_SHARD_BYTES = 1 << 30  # larger files are split

_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
_TOP = {
    "token_embedder/embedding": "shared.weight",
    "encoder/encoder_norm/scale": "encoder.final_layer_norm.weight",
    "decoder/decoder_norm/scale": "decoder.final_layer_norm.weight",
    "decoder/logits_dense/kernel": "lm_head.weight",
}
# Our name of a layer's part -> its position in a Hugging Face block, and its name there.
_ENCODER_PARTS = {
    "pre_attention_layer_norm": (0, "layer_norm"),
    "attention": (0, "SelfAttention"),
    "pre_mlp_layer_norm": (1, "layer_norm"),
    "mlp": (1, "DenseReluDense"),
}
_DECODER_PARTS = {
    "pre_self_attention_layer_norm": (0, "layer_norm"),
    "self_attention": (0, "SelfAttention"),
    "pre_cross_attention_layer_norm": (1, "layer_norm"),
    "encoder_decoder_attention": (1, "EncDecAttention"),
    "pre_mlp_layer_norm": (2, "layer_norm"),
    "mlp": (2, "DenseReluDense"),
}
# Copies that some files have of other parameters, or that T5 does not read.
_COPIES = re.compile(
    r"(encoder|decoder)\.embed_tokens\.weight"
    r"|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
)
# `feed_forward_proj` -> our activations.
_ACTIVATIONS = {
    "relu": ("relu",),
    "gated-gelu": ("gelu", "linear"),
    "gated-silu": ("silu", "linear"),
}


def find(path: epath.Path) -> epath.Path | None:
    """`path` if it is a Hugging Face checkpoint, else None."""
    return path if (path / _CONFIG).is_file() else None


def read(path: epath.Path) -> StoredCheckpoint:
    """Opens the checkpoint in the directory `path`.

    Raises UserError if it is not of a T5, or files are missing or damaged.
    """
    config = _read_json(path / _CONFIG)
    tensors = _open_tensors(path)
    tied = _is_tied(tensors)
    model = _model_of(config, tied, str(path / _CONFIG))
    params = {}
    for name in _our_names(model):
        theirs = their_name(name)
        if theirs not in tensors:
            raise UserError(
                f"the checkpoint {path} does not fit its {_CONFIG}: the parameter {theirs} is "
                "missing"
            )
        array = tensors.pop(theirs)
        params[name] = Transposed(array) if _is_transposed(name) else array
    left = sorted(name for name in tensors if not _COPIES.fullmatch(name))
    if tied:
        left = [name for name in left if name != "lm_head.weight"]
    if left:
        raise UserError(
            f"the checkpoint {path} does not fit its {_CONFIG}: the parameter {left[0]} is not of "
            "that model"
        )
    vocabulary = path / _VOCABULARY
    return StoredCheckpoint(
        path=str(path),
        format="Hugging Face",
        params=nested(params),
        model=model,
        vocabulary_bytes=vocabulary.read_bytes() if vocabulary.exists() else None,
    )


def write(
    path: epath.Path,
    params: PyTree,
    model: Mapping[str, Any],
    vocabulary_bytes: bytes | None,
    dtype: str,
) -> None:
    """Writes a checkpoint from which `transformers` generates, into the existing directory `path`.

    Args:
      path: gets `config.json`, `generation_config.json`, the weights, and the tokeniser's files if
        there is a vocabulary.
      params: nested dict of `StoredArray`, an array for each layer; read one at a time.
      model: the T5's settings, `T5.description()`.
      vocabulary_bytes: a SentencePiece model.
      dtype: "float32", "bfloat16" or "float16".

    Raises:
      UserError: `transformers` has no such T5.
    """
    arrays = {}
    for name, array in flattened(params).items():
        arrays[their_name(name)] = Transposed(array) if _is_transposed(name) else array
    _write_json(path / _CONFIG, _config_of(model, dtype))
    tokens = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    _write_json(path / "generation_config.json", tokens)
    _write_tensors(path, arrays, np.dtype(dtype))
    if vocabulary_bytes is not None:
        (path / _VOCABULARY).write_bytes(vocabulary_bytes)
        tokenizer = _tokenizer_of(Vocabulary.from_bytes(vocabulary_bytes), model["vocab_size"])
        _write_json(path / "tokenizer_config.json", tokenizer)


# --- names ---------------------------------------------------------------------------------------


def their_name(name: str) -> str:
    """Hugging Face's name of our parameter `name`."""
    if name in _TOP:
        return _TOP[name]
    stack, layer, *rest = name.split("/")
    if layer == "relpos_bias":
        return f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    number = layer.removeprefix("layers_")
    part, *inner = rest
    position, theirs = (_ENCODER_PARTS if stack == "encoder" else _DECODER_PARTS)[part]
    block = f"{stack}.block.{number}.layer.{position}.{theirs}"
    if theirs == "layer_norm":
        return f"{block}.weight"
    return f"{block}.{_ATTENTION.get(inner[0], inner[0])}.weight"


def _is_transposed(name: str) -> bool:
    return name.endswith(("kernel", "rel_embedding"))


def _our_names(model: Mapping[str, Any]) -> Iterator[str]:
    """Names of all parameters of a T5, an array for each layer."""
    yield "token_embedder/embedding"
    gated = len(model["mlp_activations"]) > 1
    mlp = ("wi_0", "wi_1", "wo") if gated else ("wi", "wo")
    for stack, parts in (("encoder", _ENCODER_PARTS), ("decoder", _DECODER_PARTS)):
        yield f"{stack}/relpos_bias/rel_embedding"
        yield f"{stack}/{stack}_norm/scale"
        for layer in range(model[f"num_{stack}_layers"]):
            for part, (_, theirs) in parts.items():
                prefix = f"{stack}/layers_{layer}/{part}"
                if theirs == "layer_norm":
                    yield f"{prefix}/scale"
                else:
                    for inner in mlp if part == "mlp" else _ATTENTION:
                        yield f"{prefix}/{inner}/kernel"
    if not model["logits_via_embedding"]:
        yield "decoder/logits_dense/kernel"


# --- configuration -------------------------------------------------------------------------------


def _is_tied(tensors: Mapping[str, StoredArray]) -> bool:
    """Whether the embedding is the output layer too, as the arrays say.

    Configurations of `transformers` 5 say so of every T5.
    """
    head, shared = tensors.get("lm_head.weight"), tensors.get("shared.weight")
    if head is None or shared is None:
        return head is None
    if head.shape != shared.shape:
        return False
    step = max(1, (64 << 20) // (4 * head.shape[1]))  # rows of 64 MB
    for start in range(0, head.shape[0], step):
        rows = (slice(start, start + step), slice(None))
        if not np.array_equal(head.read(rows), shared.read(rows)):
            return False
    return True


def _model_of(config: Mapping[str, Any], tied: bool, file: str) -> dict[str, Any]:
    def need(key: str, *wanted: Any, default: Any = None) -> Any:
        value = config.get(key, default)
        if value is None:
            raise UserError(f"{file} has no {key!r}: it is not the configuration of a T5")
        if not wanted and not (isinstance(value, int) and 0 < value < 1 << 31):
            raise UserError(f"{file}: {key} is {str(value)[:40]!r} but must be a whole number")
        if wanted and value not in wanted:
            raise UserError(
                f"{file}: {key} is {value!r} but must be {' or '.join(map(repr, wanted))}"
            )
        return value

    need("model_type", "t5")
    activation = need("feed_forward_proj", *_ACTIVATIONS, default="relu")
    need("layer_norm_epsilon", 1e-6, default=1e-6)
    need("pad_token_id", 0, default=0)
    need("eos_token_id", 1, default=1)
    need("decoder_start_token_id", 0, default=0)
    scaled = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
    if scaled != tied:
        raise UserError(
            f"{file}: the embedding is {'' if tied else 'not '}the output layer too and its output "
            f"is {'' if scaled else 'not '}scaled; a T5 has both (T5 1.0) or neither (T5 1.1)"
        )
    return {
        "family": "t5",
        "vocab_size": need("vocab_size"),
        "emb_dim": need("d_model"),
        "num_heads": need("num_heads"),
        "head_dim": need("d_kv"),
        "mlp_dim": need("d_ff"),
        "num_encoder_layers": need("num_layers"),
        "num_decoder_layers": need("num_decoder_layers", default=config.get("num_layers")),
        "mlp_activations": _ACTIVATIONS[activation],
        "logits_via_embedding": tied,
        "relative_attention_num_buckets": need("relative_attention_num_buckets", default=32),
        "relative_attention_max_distance": need("relative_attention_max_distance", default=128),
    }


def _config_of(model: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    activations = tuple(model["mlp_activations"])
    names = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    if activations not in names:
        raise UserError(
            f"transformers has no T5 with mlp_activations {activations}; it has "
            f"{', '.join(map(str, names))}"
        )
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": model["vocab_size"],
        "d_model": model["emb_dim"],
        "num_heads": model["num_heads"],
        "d_kv": model["head_dim"],
        "d_ff": model["mlp_dim"],
        "num_layers": model["num_encoder_layers"],
        "num_decoder_layers": model["num_decoder_layers"],
        "feed_forward_proj": names[activations],
        "relative_attention_num_buckets": model["relative_attention_num_buckets"],
        "relative_attention_max_distance": model["relative_attention_max_distance"],
        "layer_norm_epsilon": 1e-6,
        "dropout_rate": 0.0,  # as it was trained here
        "tie_word_embeddings": model["logits_via_embedding"],
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "use_cache": True,
        "torch_dtype": dtype,
    }


def _tokenizer_of(vocabulary: Vocabulary, rows: int) -> dict[str, Any]:
    """What makes `transformers` read `spiece.model` as SentencePiece does; `rows` of embeddings."""
    return {
        "tokenizer_class": "T5Tokenizer",
        # Without the list every piece that the vocabulary's user defined is taken for special.
        "additional_special_tokens": [],
        # T5's sentinels, which follow the vocabulary's pieces where there is room for them.
        "extra_ids": 100 if rows >= vocabulary.size + 100 else 0,
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }


# --- files ---------------------------------------------------------------------------------------


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is missing or no whole JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content


def _write_json(path: epath.Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _open_tensors(path: epath.Path) -> dict[str, StoredArray]:
    if not (path / _INDEX).exists():
        if not (path / _WEIGHTS).exists():
            raise UserError(
                f"{path} has {_CONFIG} but neither {_WEIGHTS} nor {_INDEX}: weights are read from "
                "safetensors files only (save_pretrained of transformers writes them)"
            )
        return _open_file(path, _WEIGHTS, None)
    places = _read_json(path / _INDEX).get("weight_map")
    if not isinstance(places, dict):
        raise UserError(f"{path / _INDEX} has no 'weight_map'")
    files: dict[str, dict[str, StoredArray]] = {}
    tensors = {}
    for name, file in sorted(places.items()):
        if not isinstance(file, str) or not _FILE_NAME.fullmatch(file):
            raise UserError(
                f"{path / _INDEX} has the parameter {name} in {str(file)[:80]!r}, which is not the "
                "name of a file beside it"
            )
        if file not in files:
            files[file] = _open_file(path, file, name)
        if name not in files[file]:
            raise UserError(
                f"the checkpoint {path} is damaged: the parameter {name} is not in {file}, where "
                f"{_INDEX} has it"
            )
        tensors[name] = files[file][name]
    return tensors


def _open_file(path: epath.Path, file: str, parameter: str | None) -> dict[str, StoredArray]:
    try:
        return dict(safetensors.open_file(str(path), file))
    except (ValueError, OSError) as error:
        needed = f", which has the parameter {parameter}" if parameter else ""
        raise UserError(
            f"the checkpoint {path} is damaged: {error}{needed}; copy it again from where it came "
            "from"
        ) from error


def _write_tensors(path: epath.Path, arrays: Mapping[str, StoredArray], dtype: np.dtype) -> None:
    shards: list[dict[str, StoredArray]] = [{}]
    total = filled = 0
    for name, array in arrays.items():
        size = dtype.itemsize * int(np.prod(array.shape))
        if shards[-1] and filled + size > _SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = array
        filled += size
        total += size
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = _WEIGHTS
        if len(shards) > 1:
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        places |= dict.fromkeys(shard, file)
        with (path / file).open("wb") as stream:
            safetensors.write_file(stream, shard, dtype)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        _write_json(path / _INDEX, index)
