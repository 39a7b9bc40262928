"""The TFDS builder of `tldr_mini`."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from nlhf_jax.data.tldr_mini import population
from nlhf_jax.data.tldr_mini import text as tldr_mini_text
from nlhf_jax.data.tldr_mini.v2 import text as tldr_mini_2_text
from nlhf_jax.errors import UserError

WRITTEN = {1: tldr_mini_text, 2: tldr_mini_2_text}  # by version
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("version", WRITTEN)
def test_builds_without_a_network_and_without_a_word(version, mini_directory, no_network, capfd):
    from nlhf_jax.data.tldr_mini import builder as tldr_mini

    capfd.readouterr()
    rows = list(tldr_mini.load("sft", "test", mini_directory, version).as_numpy_iterator())
    assert capfd.readouterr() == ("", "")
    expected = list(WRITTEN[version].references("test"))
    assert len(rows) == len(expected) == 800
    for row, (post, summaries) in zip(rows, expected, strict=True):
        assert row["id"].decode() == post.id
        assert row["post"].decode() == post.text
        assert [summary.decode() for summary in row["summaries"]] == summaries


@pytest.mark.parametrize("version", WRITTEN)
def test_votes_come_with_the_share_of_the_jury(version, mini_directory, no_network):
    from nlhf_jax.data.tldr_mini import builder as tldr_mini

    rows = tldr_mini.load("preferences", "validation", mini_directory, version)
    votes = WRITTEN[version].votes("validation")
    for row, vote in zip(rows.as_numpy_iterator(), votes, strict=True):
        weight = row.pop("weight")
        assert weight == np.float32(vote.weight)
        assert {name: value.decode() for name, value in row.items()} == {
            "id": vote.post.id,
            "post": vote.post.text,
            "chosen": vote.chosen,
            "rejected": vote.rejected,
        }


def test_a_second_builder_finds_the_data_of_the_first(mini_directory):
    from nlhf_jax.data.tldr_mini import builder as tldr_mini

    tldr_mini.load("sft", "test", mini_directory)
    builder = tldr_mini.TldrMini(config="sft", data_dir=mini_directory, version="1.0.0")
    assert builder.is_prepared()
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    assert sizes == tldr_mini_text.SPLIT_POSTS
    assert "Munos" in builder.info.citation


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path):
    from nlhf_jax.data.tldr_mini import builder as tldr_mini

    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="file: cannot write tldr_mini there"):
        tldr_mini.load("sft", "test", tmp_path / "file")


def test_gin_files_that_name_no_version_get_the_first(tmp_path):
    """As those of release 0.1 do, and the `config.gin` that its runs left."""
    from nlhf_jax.data import datasets

    old, new = (datasets.tldr_mini(str(tmp_path), version=version) for version in (None, 2))
    assert (old.name, new.name) == ("tldr_mini", "tldr_mini_2")
    post, summaries = next(tldr_mini_text.references("test"))
    asked = [post.text], [summaries[0]], [summaries[1]]
    assert old.judge.compare(*asked) == population.preferences(*asked)
    lengths = {"inputs": 40, "targets": 16}
    found = [data.examples("prompts", "test", lengths) for data in (old, new)]
    for examples, text in zip(found, WRITTEN.values(), strict=True):
        assert list(examples.texts("inputs")) == [post.text for post in text.posts("test")]
    with pytest.raises(UserError, match="no version 3 of tldr_mini; TLDR_MINI_VERSION is 1 or 2"):
        datasets.tldr_mini(str(tmp_path), version=3)


def python(code: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_text_raters_and_files_need_no_tensorflow():
    result = python(
        "import sys\n"
        "from nlhf_jax.data import check, json_lines, templates\n"
        "from nlhf_jax.data.tldr_mini import population, text\n"
        "from nlhf_jax.data import batches, vocabularies\n"
        "vocabularies.tldr_mini_vocabulary()\n"
        "assert not {'tensorflow', 'seqio', 'tensorflow_datasets'} & set(sys.modules)\n"
        "from tests.data.test_tldr_mini_text import first_records\n"
        "print(first_records('train'))"
    )
    from tests.data.test_tldr_mini_text import first_records

    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(first_records("train"))  # whatever the hash seed


def test_tensorflow_is_imported_quietly_and_leaves_accelerators_alone():
    result = python(
        "from nlhf_jax.data.tf_imports import tf\n"
        "assert tf.config.get_visible_devices('GPU') == []\n"
        "import sys; print('seen', file=sys.stderr)"
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "seen\n")
