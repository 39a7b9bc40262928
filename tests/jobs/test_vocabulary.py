"""Vocabularies trained on users' files."""

import json

import pytest

from nlhf_jax.data import templates
from nlhf_jax.data.vocabularies import UNK_ID, Vocabulary
from nlhf_jax.errors import UserError
from nlhf_jax.jobs.vocabulary import train_from_files


def test_a_vocabulary_trained_on_files_knows_them_and_the_template(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": f"Übung number {n} is done"}) + "\n" for n in range(50))
    )
    words = train_from_files({str(file): "prompts"}, tmp_path / "own.model", 300)
    assert words == Vocabulary.load(tmp_path / "own.model")
    words.rater_labels()
    for text in ("Übung number 7 is done", templates.RATER_INSTRUCTION):
        assert UNK_ID not in words.encode(text)
        assert words.decode(words.encode(text)) == text


def test_a_vocabulary_is_not_trained_on_bad_files(tmp_path):
    path = tmp_path / "sft.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{}\n')
    with pytest.raises(UserError, match="sft.jsonl, line 2: the key 'prompt' is missing"):
        train_from_files({str(path): "sft"}, tmp_path / "own.model", 300)
    assert not (tmp_path / "own.model").exists()
