"""Small random models as checkpoints of every format, and their parameters for comparison."""

from pathlib import Path

import jax
import numpy as np
from etils import epath

from nlhf_jax import checkpoints
from nlhf_jax.checkpoints.arrays import InMemory, flattened, nested, read_all
from nlhf_jax.checkpoints.interop import t5x
from nlhf_jax.checkpoints.opening import open_checkpoint
from nlhf_jax.data.datasets import Dataset
from nlhf_jax.data.templates import rater_segments, reward_segments
from nlhf_jax.data.vocabularies import tldr_mini_vocabulary, train_vocabulary
from nlhf_jax.jobs.convert import convert
from nlhf_jax.models.t5 import T5, unstack_layers
from tests import tiny

WORDS = tldr_mini_vocabulary()
STEP = 7
LENGTHS = {"inputs": 12, "targets": 5}
RATER_LENGTHS = {"text": 9, "summary": 4}
T5_1_0 = {"mlp_activations": ("relu",), "logits_via_embedding": True}


def model(**settings) -> T5:
    """Two layers, with a row for each piece of tldr_mini's vocabulary; no two sizes are equal."""
    return tiny.model(WORDS.size, **({"emb_dim": 12, "heads": 4, "layers": 2} | settings))


def data() -> Dataset:
    """tldr_mini's vocabulary and templates, without its examples."""
    return Dataset("nothing", WORDS, rater_segments(WORDS), reward_segments(WORDS))


def write_ours(directory: Path, network: T5, params, step: int = STEP, **described) -> Path:
    """A checkpoint as a training of `network` leaves it; `described` as `checkpoints.describe`."""
    description = checkpoints.describe(
        **{
            "kind": "supervised",
            "model": network.description(),
            "feature_lengths": LENGTHS,
            "vocabulary_bytes": WORDS.model_bytes,
        }
        | described
    )
    files = checkpoints.Checkpoints(str(directory), keep=1, asynchronous=False)
    # The moving average of Nash-EMA, and something that is no parameter.
    state = {"params": params, "average": jax.tree.map(lambda x: 2 * x, params)}
    files.save(step, state | {"opt_state": {"count": np.int32(step)}}, description, {})
    files.close()
    return directory


def write(directory: Path, to: str, network: T5, params, dtype: str = "float32") -> Path:
    """A checkpoint of the format `to`; returns what a user would name."""
    source = write_ours(directory / "source", network, params)
    if to == "nlhf":
        return source
    convert(str(source), str(directory / to), to, dtype=dtype)
    return directory / to if to == "huggingface" else directory / to / f"checkpoint_{STEP}"


def write_native(path: Path, params) -> None:
    """A native checkpoint of T5X in the existing directory `path`, with no vocabulary beside it."""
    t5x.write_native(epath.Path(path), in_memory(flattened(params)), STEP, "float32")


def other_vocabulary(path: Path) -> bytes:
    """A SentencePiece model with fewer pieces than tldr_mini's."""
    return train_vocabulary(["a few words", "and a few more of them"], path, 120).model_bytes


def read(path: Path) -> dict[str, np.ndarray]:
    """All parameters of a checkpoint of any format: our per-layer name -> array as it is stored."""
    return flattened(unstack_layers(read_all(open_checkpoint(str(path)).params)))


def per_layer(params) -> dict[str, np.ndarray]:
    return flattened(unstack_layers(params))


def in_memory(flat: dict[str, np.ndarray]):
    """Arrays as the writers take them."""
    return nested({name: InMemory(name, np.asarray(array)) for name, array in flat.items()})


def assert_equal(met: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """The same names, types and bits."""
    assert met.keys() == wanted.keys()
    for name, array in wanted.items():
        assert met[name].dtype == array.dtype, name
        np.testing.assert_array_equal(met[name], array, err_msg=name)
