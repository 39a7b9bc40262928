"""Checkpoints that T5X and transformers wrote: every layout gives their parameters and logits."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from nlhf_jax.checkpoints.arrays import flattened
from nlhf_jax.checkpoints.networks import read_params
from nlhf_jax.checkpoints.opening import open_checkpoint
from nlhf_jax.models import registry
from nlhf_jax.models.t5 import unstack_layers
from tests import tiny
from tests.paths import golden_directory

TOLERANCE = 2e-5
# Of one float32 model.
SOURCES = (
    "t5x_tiny/native",
    "t5x_tiny/native_chunked",
    "t5x_tiny/msgpack_variants/checkpoint.gcs_driver",
    "t5x_tiny/msgpack_variants/checkpoint.toplevel_path",
    "t5x_tiny/orbax/checkpoint_3",
    "hf_tiny/config.json",
    "hf_tiny/config_as_saved_by_transformers_5.json",
)
MESH = (2, 2, 2)


@pytest.fixture
def checkpoint(request, tmp_path):
    """The path of one of `SOURCES`; those that are a file are put where they belong."""
    source = golden_directory() / request.param
    if source.is_dir():
        return str(source)
    directory, name = source.parent, source.name
    if directory.name == "msgpack_variants":
        directory, name = directory.parent / "native_chunked" / "checkpoint_3", "checkpoint"
    # File by file: copies of directories that nobody may write to could not be written to.
    for file in directory.rglob("*"):
        if file.is_file() and file.name != name:
            to = tmp_path / file.relative_to(directory)
            to.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, to)
    shutil.copyfile(source, tmp_path / ("checkpoint" if name == "checkpoint" else "config.json"))
    return str(tmp_path)


@functools.cache
def truth() -> dict[str, np.ndarray]:
    """The parameters as T5X restores them."""
    state = np.load(golden_directory() / "t5x_tiny" / "train_state_flat.npz")
    return {
        name.removeprefix("target/"): state[name]
        for name in state.files
        if name.startswith("target/")
    }


def settings(directory: str) -> dict:
    """The model's settings as its writer has them, those that we have too."""
    written = json.loads((golden_directory() / directory / "model_config.json").read_text())
    ours = ("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim", "logits_via_embedding")
    layers = ("num_encoder_layers", "num_decoder_layers", "mlp_activations")
    wanted = {name: written[name] for name in (*ours, *layers)}
    return wanted | {
        "mlp_activations": tuple(wanted["mlp_activations"]),
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
    }


def read(path, places=(1, 1, 1), scan_layers=False):
    found = open_checkpoint(str(path))
    model = registry.build(found.model | {"scan_layers": scan_layers})
    return model, read_params(found, model, tiny.mesh(*places), "float32")


def assert_same(met: dict, wanted: dict) -> None:
    assert met.keys() == wanted.keys()
    for name, array in wanted.items():
        assert met[name].dtype == np.float32
        np.testing.assert_array_equal(met[name], array, err_msg=name)


@pytest.mark.parametrize("checkpoint", SOURCES, indirect=True)
def test_every_layout_has_the_parameters_that_t5x_restores(checkpoint):
    model, params = read(checkpoint)
    assert_same(flattened(params), truth())
    assert settings("t5x_tiny").items() <= model.description().items()


@pytest.mark.parametrize("checkpoint", SOURCES, indirect=True)
def test_on_a_mesh_scanned_layers_are_the_same_parameters(checkpoint):
    _, params = read(checkpoint, MESH, scan_layers=True)
    assert_same(flattened(unstack_layers(params)), truth())
    # Cut over fsdp and tensor, and whole along layers.
    kernel = params["encoder"]["layers"]["mlp"]["wi_0"]["kernel"]
    assert tiny.part(kernel) == (2, 16, 32)


def test_the_step_is_the_one_in_the_checkpoint():
    golden = golden_directory()
    steps = {
        name: open_checkpoint(str(golden / name)).step
        for name in ("t5x_tiny/native", "t5x_tiny/orbax", "hf_tiny")
    }
    assert steps == {"t5x_tiny/native": 3, "t5x_tiny/orbax": 3, "hf_tiny": 0}


@functools.cache
def _program(model):
    """(parameters, inputs, targets) -> logits; checkpoints of one architecture share it."""

    def run(params, inputs, targets):
        return model.logits(params, model.encode(params, inputs), targets)

    return jax.jit(run)


_MODELS: dict = {}


def logits_error(path, numbers, logits, places, scan_layers) -> float:
    """The largest difference to the logits that the checkpoint's writer computed."""
    model, params = read(path, places, scan_layers)
    model = _MODELS.setdefault(str(model.description()), model)
    inputs, targets = numbers["encoder_input_tokens"], numbers["decoder_target_tokens"]
    with tiny.mesh(*places).activate():
        ours = _program(model)(params, inputs, targets)
    return float(np.abs(ours - logits)[targets > 0].max())


@pytest.mark.parametrize(("places", "scanned"), [((1, 1, 1), False), (MESH, True)])
@pytest.mark.parametrize("name", ["t5x_tiny", "t5x_tiny_v1_0"])
def test_logits_are_those_of_t5x(name, places, scanned):
    directory = golden_directory() / name
    numbers = dict(np.load(directory / "golden.npz"))
    error = logits_error(directory / "native", numbers, numbers["logits"], places, scanned)
    assert error < TOLERANCE


def test_the_model_of_t5_1_0_is_recognised():
    model, _ = read(golden_directory() / "t5x_tiny_v1_0" / "native")
    assert settings("t5x_tiny_v1_0").items() <= model.description().items()


def test_bfloat16_parameters_widened_give_the_logits_of_t5x():
    directory = golden_directory() / "t5x_tiny"
    numbers = dict(np.load(directory / "golden.npz"))
    logits = np.load(directory / "golden_bf16_params.npz")["logits"]
    path = directory / "native_sharded_bf16"
    # Four files an array, and layer norms and biases inside the msgpack.
    assert {
        array.dtype.name for array in flattened(open_checkpoint(str(path)).params).values()
    } == {"bfloat16"}
    assert logits_error(path, numbers, logits, (1, 1, 1), False) < TOLERANCE


def test_bfloat16_parameters_are_the_rounded_ones():
    _, params = read(golden_directory() / "t5x_tiny" / "native_sharded_bf16", MESH)
    rounded = {name: array.astype("bfloat16").astype("float32") for name, array in truth().items()}
    assert_same(flattened(params), rounded)


def test_logits_of_hugging_face_are_ours():
    directory = golden_directory() / "hf_tiny"
    numbers = dict(np.load(directory / "golden.npz"))
    assert logits_error(directory, numbers, numbers["logits"], (1, 1, 1), False) < TOLERANCE
