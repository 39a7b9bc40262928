"""What `nlhf data` does."""

import json

import pytest

from nlhf_jax.data import jobs, templates
from nlhf_jax.data.vocabularies import UNK_ID, Vocabulary
from nlhf_jax.errors import UserError


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "sft.jsonl"
    good = json.dumps({"prompt": "My boss steals food.", "completion": "boss food war"})
    path.write_text(f"{good}\n{{}}\n{good}\nnonsense\n")
    return path


def test_check_lists_every_bad_line_and_measures_the_good_ones(path, vocabulary):
    found = jobs.check(path, "sft", vocabulary)
    assert found.rows == 2
    assert [problem.split(": ")[0] for problem in found.problems] == [
        f"{path}, line 2",
        f"{path}, line 4",
    ]
    assert found.lengths["prompt"].tolist() == [6, 6]
    assert found.lengths["completion"].tolist() == [4, 4]
    report = found.report()
    assert f"{path}: 2 good lines, 2 bad ones" in report
    assert "completion: 4 tokens at the median, 4 at 95 %, 4 at most" in report
    assert "... and 1 more" in found.report(most_problems=1)


def test_check_of_an_unknown_kind_is_a_user_error(path):
    with pytest.raises(UserError, match="there is no kind of data 'dpo'; wanted one of"):
        jobs.check(path, "dpo")


def test_a_vocabulary_trained_on_files_knows_them_and_the_template(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        "".join(json.dumps({"prompt": f"Übung number {n} is done"}) + "\n" for n in range(50))
    )
    words = jobs.train_vocabulary_from_files({str(file): "prompts"}, tmp_path / "own.model", 300)
    assert words == Vocabulary.load(tmp_path / "own.model")
    words.rater_labels()
    for text in ("Übung number 7 is done", templates.RATER_INSTRUCTION):
        assert UNK_ID not in words.encode(text)
        assert words.decode(words.encode(text)) == text


def test_a_vocabulary_is_not_trained_on_bad_files(path, tmp_path):
    with pytest.raises(UserError, match="sft.jsonl, line 2: the key 'prompt' is missing"):
        jobs.train_vocabulary_from_files({str(path): "sft"}, tmp_path / "own.model", 300)
    assert not (tmp_path / "own.model").exists()
