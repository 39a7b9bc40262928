"""A base checkpoint is the network: its sizes, its parameters and its vocabulary, of any format."""

import dataclasses
import shutil

import jax
import pytest

from nlhf_jax.checkpoints.arrays import flattened
from nlhf_jax.data.vocabularies import Vocabulary
from nlhf_jax.errors import UserError
from nlhf_jax.jobs import builders
from nlhf_jax.jobs.vocabulary import train_vocabulary
from tests import tiny
from tests.checkpoints.interop import tiny_checkpoints
from tests.checkpoints.interop.tiny_checkpoints import WORDS, assert_equal

FORMATS = ("nlhf", "huggingface", "t5x", "t5x_orbax")
CONFIGURED = tiny_checkpoints.model(emb_dim=16, dtype="bfloat16", scan_layers=True).config
T5_1_1 = tiny_checkpoints.model(emb_dim=24, layers=3)
T5_1_0 = tiny_checkpoints.model(emb_dim=20, **tiny_checkpoints.T5_1_0)
KINDS = ("supervised", "preference", "reward")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Format -> what a user would name; T5 1.0's is of Hugging Face's format too."""
    place = tmp_path_factory.mktemp("bases")
    found = {
        to: tiny_checkpoints.write(place / to, to, T5_1_1, tiny.params(T5_1_1, 1)) for to in FORMATS
    }
    found["1.0"] = tiny_checkpoints.write(
        place / "1.0", "huggingface", T5_1_0, tiny.params(T5_1_0, 1)
    )
    return {name: str(path) for name, path in found.items()}


def build(kind, base, continues_in=None, **settings):
    setup = builders.Setup(
        tiny_checkpoints.data(), {}, tiny.one_device(), tiny.optimizer(), 0, microbatches=1
    )
    if continues_in is not None:
        setup = setup.of_run(continues_in)
    return getattr(builders, kind)(setup, CONFIGURED, base_checkpoint=base, **settings)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*FORMATS, "1.0"])
def test_a_learner_is_its_base(bases, name, kind):
    """Of MODEL it has how it is run: scanned layers in bfloat16, trained in float32."""
    base = T5_1_0 if name == "1.0" else T5_1_1
    learner = build(kind, bases[name], dropout=0.1)
    how = {"dtype": "bfloat16", "scan_layers": True, "dropout_rate": 0.1}
    assert learner.model.config == dataclasses.replace(base.config, **how)
    if kind == "supervised":
        wanted = tiny.params(tiny.model(**_settings(base, scan_layers=True)), 1)
        found = learner.init().params
        assert_equal(_values(found), _values(wanted))


def _settings(network, **changes):
    config = dataclasses.asdict(network.config) | changes
    names = ("mlp_activations", "logits_via_embedding", "scan_layers")
    return {name: config[name] for name in names} | {
        "vocab_size": config["vocab_size"],
        "emb_dim": config["emb_dim"],
        "heads": config["num_heads"],
        "layers": config["num_encoder_layers"],
    }


def _values(params):
    return flattened(jax.device_get(params))


def test_a_run_that_continues_needs_its_own_checkpoint_alone(bases, tmp_path):
    own = str(shutil.copytree(bases["nlhf"], tmp_path / "own"))
    learner = build("supervised", str(tmp_path / "gone"), continues_in=own)
    assert learner.model.config.emb_dim == T5_1_1.config.emb_dim
    learner.abstract_state()
    with pytest.raises(UserError, match="gone"):
        learner.init()  # as it would where all of the run's own are damaged


def test_a_base_and_a_start_are_one_too_many(bases):
    with pytest.raises(UserError, match="INITIAL_CHECKPOINT is .* and BASE_CHECKPOINT is .*: give"):
        build("reward", bases["nlhf"], initial_checkpoint=bases["nlhf"])


def vocabulary(workdir, **settings):
    train_vocabulary(str(workdir), None, 300, **settings)
    return Vocabulary.load(workdir / "vocabulary.model")


@pytest.mark.parametrize("name", ["nlhf", "huggingface"])
def test_its_vocabulary_is_taken(bases, tmp_path, name):
    assert vocabulary(tmp_path, base_checkpoint=bases[name]) == WORDS


def test_one_without_a_vocabulary_needs_to_be_told(bases, tmp_path):
    with pytest.raises(UserError, match=r"t5x/checkpoint_7 \(T5X\) holds no vocabulary: set BASE_"):
        vocabulary(tmp_path, base_checkpoint=bases["t5x"])
    path = tmp_path / "words.model"
    path.write_bytes(WORDS.model_bytes)
    assert vocabulary(tmp_path, base_checkpoint=bases["t5x"], base_vocabulary=str(path)) == WORDS


def test_a_wrong_vocabulary_is_refused(bases, tmp_path):
    other = tmp_path / "other.model"
    tiny_checkpoints.other_vocabulary(other)
    with pytest.raises(UserError, match="vocabulary"):
        vocabulary(tmp_path, base_checkpoint=bases["nlhf"], base_vocabulary=str(other))
    small = tmp_path / "small"
    small.mkdir()
    tiny_checkpoints.write_native(small, tiny.params(tiny.model(100), 1))
    large = tmp_path / "large.model"
    large.write_bytes(WORDS.model_bytes)
    with pytest.raises(UserError, match="has 100 rows in .* but the vocabulary has"):
        vocabulary(tmp_path, base_checkpoint=str(small), base_vocabulary=str(large))
    assert not (tmp_path / "vocabulary.model").exists()


def test_without_a_base_there_must_be_texts(tmp_path):
    with pytest.raises(UserError, match="FILES is None .* but without a BASE_CHECKPOINT"):
        vocabulary(tmp_path)
