"""Round trips between formats: the same parameters, bit for bit, and nothing half-written."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from etils import epath

from nlhf_jax import checkpoints
from nlhf_jax.checkpoints.integrity import check_state_files
from nlhf_jax.checkpoints.interop import huggingface
from nlhf_jax.checkpoints.opening import open_checkpoint
from nlhf_jax.data.templates import rater_segments, reward_segments
from nlhf_jax.data.vocabularies import tldr_mini_vocabulary
from nlhf_jax.errors import UserError
from nlhf_jax.jobs.convert import convert
from nlhf_jax.main import main
from nlhf_jax.models import registry
from tests import tiny
from tests.checkpoints.interop import tiny_checkpoints
from tests.checkpoints.interop.tiny_checkpoints import (
    LENGTHS,
    RATER_LENGTHS,
    STEP,
    T5_1_0,
    assert_equal,
    per_layer,
    read,
    write,
    write_ours,
)

FOREIGN = ("t5x", "t5x_orbax", "huggingface")
WORDS = tldr_mini_vocabulary()


@pytest.fixture
def vocabulary(tmp_path) -> str:
    path = tmp_path / "words.model"
    path.write_bytes(WORDS.model_bytes)
    return str(path)


def model_settings(path) -> dict:
    """Of the model that is built from the checkpoint, without how a run of ours computes."""
    settings = registry.build(open_checkpoint(str(path)).model).description()
    return {k: v for k, v in settings.items() if k not in ("dtype", "scan_layers")}


# --- there and back ------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"scan_layers": True}, T5_1_0], ids=["scanned", "T5 1.0"])
@pytest.mark.parametrize("to", FOREIGN)
def test_there_and_back_are_the_same_parameters(tmp_path, vocabulary, to, settings):
    network = tiny_checkpoints.model(**settings)
    params = tiny.params(network, 1)
    there = write(tmp_path, to, network, params)
    assert_equal(read(there), per_layer(params))
    options = {"vocabulary": vocabulary, "feature_lengths": LENGTHS}
    convert(str(there), str(tmp_path / "back"), "nlhf", **options)
    assert_equal(read(tmp_path / "back"), per_layer(params))
    # Hugging Face's have no step.
    back = checkpoints.open_checkpoint(str(tmp_path / "back"))
    assert back.step == (0 if to == "huggingface" else STEP)
    ours = model_settings(tmp_path / "source")
    assert model_settings(there) == ours and model_settings(tmp_path / "back") == ours


@pytest.mark.parametrize("to", (*FOREIGN, "nlhf"))
def test_parameters_in_bfloat16_are_the_rounded_ones(tmp_path, to):
    network = tiny_checkpoints.model()
    params = tiny.params(network, 1)
    source = write_ours(tmp_path / "source", network, params)
    convert(str(source), str(tmp_path / "there"), to, dtype="bfloat16")
    rounded = {name: x.astype(ml_dtypes.bfloat16) for name, x in per_layer(params).items()}
    assert_equal(read(tmp_path / "there"), rounded)
    # Widened again they lose nothing.
    options = {"feature_lengths": LENGTHS}
    if to.startswith("t5x"):
        options["vocabulary"] = str(tmp_path / "there" / "sentencepiece.model")
    convert(str(tmp_path / "there"), str(tmp_path / "back"), "nlhf", **options)
    assert_equal(read(tmp_path / "back"), {k: x.astype(np.float32) for k, x in rounded.items()})


@pytest.mark.parametrize("to", ("nlhf", "t5x"))
def test_the_average_is_converted_when_it_is_named(tmp_path, to):
    network = tiny_checkpoints.model(scan_layers=True)
    params = tiny.params(network, 1)
    source = write_ours(tmp_path / "source", network, params)
    convert(f"{source}#average", str(tmp_path / "there"), to)
    doubled = {name: 2 * array for name, array in per_layer(params).items()}
    assert_equal(read(tmp_path / "there"), doubled)


@pytest.mark.parametrize("scanned", [False, True])
def test_ours_to_ours_keeps_what_it_says_of_itself_and_drops_the_optimiser(tmp_path, scanned):
    network = tiny_checkpoints.model(scan_layers=scanned)
    params = tiny.params(network, 1)
    described = {
        "kind": "preference",
        "feature_lengths": RATER_LENGTHS,
        "rater_template": rater_segments(WORDS).segments,
        "rater_labels": WORDS.rater_labels(),
        "prompt_form": "{prompt} TL;DR:",
        "trained_against": {"path": "elsewhere"},
    }
    source = write_ours(tmp_path / "source", network, params, **described)
    convert(str(source), str(tmp_path / "there"), "nlhf")
    assert_equal(read(tmp_path / "there"), per_layer(params))
    before, after = (
        checkpoints.read_description(str(path)) for path in (source, tmp_path / "there")
    )
    assert after["model"].pop("scan_layers") is False
    assert before["model"].pop("scan_layers") is scanned
    assert {name: after[name] for name in before} == before
    step = tmp_path / "there" / "checkpoints" / str(STEP)
    check_state_files(epath.Path(step) / "state")
    assert not list(step.rglob("*opt_state*")) and not list(step.rglob("*average*"))


@pytest.mark.parametrize(
    ("kind", "lengths", "said"),
    [
        ("policy", LENGTHS, {"kind": "supervised", "rater_template": None, "rater_labels": None}),
        (
            "preference",
            RATER_LENGTHS,
            {
                "kind": "preference",
                "rater_template": rater_segments(WORDS).segments,
                "rater_labels": WORDS.rater_labels(),
            },
        ),
        (
            "reward",
            RATER_LENGTHS,
            {
                "kind": "reward",
                "rater_template": reward_segments(WORDS).segments,
                "rater_labels": None,
            },
        ),
    ],
)
def test_what_a_foreign_checkpoint_does_not_say_is_what_the_user_says(
    tmp_path, vocabulary, kind, lengths, said
):
    network = tiny_checkpoints.model()
    there = write(tmp_path, "t5x", network, tiny.params(network, 1))
    options = {"vocabulary": vocabulary, "kind": kind, "feature_lengths": lengths}
    options["prompt_form"] = "{prompt} TL;DR:"
    convert(str(there), str(tmp_path / "back"), "nlhf", **options)
    wanted = checkpoints.describe(
        **{"model": network.description(), "vocabulary_bytes": WORDS.model_bytes}
        | {name: options[name] for name in ("feature_lengths", "prompt_form")}
        | {"kind": said["kind"]}
        | {name: said[name] for name in ("rater_template", "rater_labels")}
    )
    met = checkpoints.read_description(str(tmp_path / "back"))
    assert {name: met[name] for name in wanted} == json.loads(json.dumps(wanted))


@pytest.mark.parametrize(
    ("to", "file"),
    [
        ("t5x", "sentencepiece.model"),
        ("t5x_orbax", "sentencepiece.model"),
        ("huggingface", "spiece.model"),
    ],
)
def test_the_vocabulary_goes_along(tmp_path, to, file):
    network = tiny_checkpoints.model()
    write(tmp_path, to, network, tiny.params(network, 1))
    assert (tmp_path / to / file).read_bytes() == WORDS.model_bytes


def test_hugging_faces_vocabulary_comes_back_without_being_named(tmp_path):
    network = tiny_checkpoints.model()
    there = write(tmp_path, "huggingface", network, tiny.params(network, 1))
    convert(str(there), str(tmp_path / "back"), "nlhf", feature_lengths=LENGTHS)
    back = checkpoints.open_checkpoint(str(tmp_path / "back"))
    assert back.vocabulary_bytes == WORDS.model_bytes


def test_large_weights_are_several_safetensors_files_with_an_index(tmp_path, monkeypatch):
    limit = 20_000
    monkeypatch.setattr(huggingface, "_SHARD_BYTES", limit)
    network = tiny_checkpoints.model()
    params = tiny.params(network, 1)
    there = write(tmp_path, "huggingface", network, params)
    index = json.loads((there / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in there.glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    assert index["metadata"]["total_size"] == sum(4 * x.size for x in per_layer(params).values())
    assert set(index["weight_map"].values()) == set(files)
    assert index["weight_map"].keys() == {huggingface.their_name(n) for n in per_layer(params)}
    header = 4096  # of some ten arrays, at most
    assert all((there / name).stat().st_size <= limit + header for name in files)
    assert_equal(read(there), per_layer(params))


def test_one_sentence_says_what_was_written(tmp_path):
    network = tiny_checkpoints.model()
    params = tiny.params(network, 1)
    source = write_ours(tmp_path / "source", network, params)
    count = sum(x.size for x in per_layer(params).values())
    said = convert(str(source), str(tmp_path / "there"), "t5x", dtype="bfloat16")
    path = source / "checkpoints" / str(STEP)
    wanted = f"{count:,} parameters of {path} (nlhf) as t5x, bfloat16"
    assert said == f"{tmp_path / 'there' / 'checkpoint_7'}: {wanted}"


# --- into directories where there is something ---------------------------------------------------


@pytest.mark.parametrize("to", ("t5x", "t5x_orbax"))
def test_t5x_checkpoints_of_other_steps_stay(tmp_path, to):
    network = tiny_checkpoints.model()
    old, new = (tiny.params(network, seed) for seed in (1, 2))
    out = str(tmp_path / "out")
    convert(str(write_ours(tmp_path / "a", network, old, step=9)), out, to)
    convert(str(write_ours(tmp_path / "b", network, new, step=5)), out, to)
    assert_equal(read(tmp_path / "out" / "checkpoint_9"), per_layer(old))
    assert_equal(read(tmp_path / "out" / "checkpoint_5"), per_layer(new))
    # Of several steps the directory means the last.
    assert open_checkpoint(out).step == 9


def test_a_run_is_not_written_into(tmp_path):
    network = tiny_checkpoints.model()
    run = write_ours(tmp_path / "run", network, tiny.params(network, 1), step=3)
    other = write_ours(tmp_path / "other", network, tiny.params(network, 2), step=5)
    with pytest.raises(UserError, match="run/checkpoints is there already"):
        convert(str(other), str(run), "nlhf")
    assert checkpoints.open_checkpoint(str(run)).step == 3


def test_a_conversion_that_was_killed_is_done_again(tmp_path):
    """But what a training has not saved yet is the training's."""
    network = tiny_checkpoints.model()
    params = tiny.params(network, 1)
    other = write_ours(tmp_path / "other", network, params, step=5)
    left = tmp_path / "out" / "checkpoints" / "5.orbax-checkpoint-tmp"
    shutil.copytree(other / "checkpoints" / "5", left)
    (tmp_path / "out" / "run.json").touch()
    with pytest.raises(UserError, match="out/checkpoints is there already"):
        convert(str(other), str(tmp_path / "out"), "nlhf")
    (tmp_path / "out" / "run.json").unlink()
    convert(str(other), str(tmp_path / "out"), "nlhf")
    assert not left.exists()
    assert_equal(read(tmp_path / "out"), per_layer(params))


def test_an_empty_directory_can_be_the_output(tmp_path):
    network = tiny_checkpoints.model()
    params = tiny.params(network, 1)
    (tmp_path / "huggingface").mkdir()
    assert_equal(read(write(tmp_path, "huggingface", network, params)), per_layer(params))


# --- what goes wrong -----------------------------------------------------------------------------


def everything(directory) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def refused(capsys, *arguments: str) -> str:
    """The one sentence with which the command line refuses."""
    capsys.readouterr()
    assert main(["convert", *arguments]) == 2
    errors = capsys.readouterr().err
    (said,) = errors.splitlines()
    return said.removeprefix("nlhf: error: ")


@pytest.fixture(scope="module")
def whole_native(tmp_path_factory):
    network = tiny_checkpoints.model()
    return write(tmp_path_factory.mktemp("native"), "t5x", network, tiny.params(network, 1))


@pytest.fixture
def native(whole_native, tmp_path):
    """A native checkpoint of T5X to damage."""
    path = tmp_path / whole_native.name
    shutil.copytree(whole_native, path)
    return path


@pytest.mark.parametrize(
    ("to", "options", "said"),
    [
        ("pytorch", [], "--to is 'pytorch' but is one of nlhf, t5x, t5x_orbax, huggingface"),
        ("nlhf", ["--dtype=float8"], "--dtype is 'float8' but is one of float32, bfloat16"),
        ("nlhf", ["--kind=judge"], "--kind is 'judge' but is one of policy, preference, reward"),
        ("nlhf", ["--feature_lengths=inputs=9,targets=4"], "--vocabulary=FILE"),
        ("nlhf", ["--vocabulary={vocabulary}"], "--feature_lengths=inputs=64,targets=64"),
        (
            "nlhf",
            ["--vocabulary={vocabulary}", "--kind=reward", "--feature_lengths=text=9"],
            "give summary, for example --feature_lengths=text=64,summary=64",
        ),
        ("nlhf", ["--feature_lengths=inputs=1"], "'inputs=1' must be NAME=N with N at least 2"),
        ("huggingface", ["--vocabulary=absent.model"], "absent.model"),
        ("huggingface", ["--vocabulary={checkpoint}/checkpoint"], "is not a SentencePiece model"),
    ],
)
def test_a_setting_that_is_missing_or_unknown_is_one_sentence(
    tmp_path, native, vocabulary, capsys, to, options, said
):
    before = everything(tmp_path)
    options = [option.format(vocabulary=vocabulary, checkpoint=native) for option in options]
    output = f"--output={tmp_path / 'out' / 'inside'}"
    assert said in refused(capsys, f"--checkpoint={native}", f"--to={to}", output, *options)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("to", ("nlhf", *FOREIGN))
def test_an_output_that_is_there_stays_as_it_is(tmp_path, vocabulary, native, capsys, to):
    lengths = "--feature_lengths=inputs=9,targets=4"
    arguments = [f"--checkpoint={native}", f"--to={to}", f"--vocabulary={vocabulary}", lengths]
    output = f"--output={tmp_path / 'out'}"
    assert main(["convert", *arguments, output]) == 0
    before = everything(tmp_path)
    assert "is there already: choose another --output" in refused(capsys, *arguments, output)
    output = f"--output={vocabulary}"
    assert "words.model is a file: choose another --output" in refused(capsys, *arguments, output)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("to", ("nlhf", *FOREIGN))
@pytest.mark.parametrize("new", [False, True], ids=["beside others", "new"])
def test_a_chunk_that_is_damaged_leaves_nothing_behind(
    tmp_path, vocabulary, native, capsys, to, new
):
    if not new:
        (tmp_path / "out").mkdir()
    name = "decoder/decoder_norm/scale"  # neither the first nor the last that is written
    (native / f"target.{name.replace('/', '.')}" / "0").write_bytes(b"damaged")
    before = everything(tmp_path)
    options = [f"--vocabulary={vocabulary}", "--feature_lengths=inputs=9,targets=4"]
    output = f"--output={tmp_path / 'out'}"
    said = refused(capsys, f"--checkpoint={native}", f"--to={to}", output, *options)
    assert f"the parameter {name} cannot be read" in said and str(native) in said
    assert everything(tmp_path) == before


def test_transformers_has_not_every_t5(tmp_path):
    network = tiny_checkpoints.model(mlp_activations=("gelu",))
    source = write_ours(tmp_path / "source", network, tiny.params(network, 1))
    before = everything(tmp_path)
    with pytest.raises(UserError, match=r"no T5 with mlp_activations \('gelu',\)"):
        convert(str(source), str(tmp_path / "there"), "huggingface")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("to", ("t5x", "t5x_orbax"))
def test_t5x_has_not_every_t5(tmp_path, to):
    network = tiny_checkpoints.model(relative_attention_max_distance=64)
    source = write_ours(tmp_path / "source", network, tiny.params(network, 1))
    before = everything(tmp_path)
    with pytest.raises(UserError, match="relative_attention_max_distance is 64 but T5X's is 128"):
        convert(str(source), str(tmp_path / "there"), to)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("which", ["average", "best"])
def test_only_ours_can_have_an_average_or_a_best_step(native, tmp_path, which):
    with pytest.raises(UserError, match=f"only checkpoints of nlhf can have #{which}"):
        convert(f"{native}#{which}", str(tmp_path / "there"), "huggingface")
