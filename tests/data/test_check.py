"""What `nlhf data check` says."""

import json

import pytest

from nlhf_jax.data.check import check
from nlhf_jax.errors import UserError


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "sft.jsonl"
    good = json.dumps({"prompt": "My boss steals food.", "completion": "boss food war"})
    path.write_text(f"{good}\n{{}}\n{good}\nnonsense\n")
    return path


def test_check_lists_every_bad_line_and_measures_the_good_ones(path, vocabulary):
    found = check(path, "sft", vocabulary)
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
        check(path, "dpo")
