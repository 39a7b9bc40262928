"""What of the data does not reach a learner is said: texts that are cut, lines that are skipped."""

import json
from pathlib import Path

import pytest

from nlhf_jax import checkpoints
from tests.end_to_end.conftest import LENGTHS

BAD = ['{"prompt": "a"}', "nonsense", '{"prompt": "a", "completion": 3}']


@pytest.fixture(scope="module")
def sft_file(tmp_path_factory):
    """Eight long prompts, three bad lines in their midst."""
    path = tmp_path_factory.mktemp("lines") / "sft.jsonl"
    row = json.dumps({"prompt": "my boss " * 40, "completion": "my boss"})
    short = json.dumps({"prompt": "food", "completion": "um " * 20})
    path.write_text("\n".join([row, BAD[0], row, short, BAD[1], *[row] * 6, BAD[2]]) + "\n")
    return path


def _train(workplace, nlhf, path, name, *macros):
    files = f"SFT_FILES={{'train': '{path}'}}"
    form = 'PROMPT_FORM="boss - {prompt}\\n\\nsummary -"'
    return nlhf(*workplace.arguments("sft", name, files, form, *macros, steps=1))


def test_a_bad_line_stops_the_run_unless_the_user_chose_otherwise(workplace, nlhf, sft_file):
    for macros in ((), ("BAD_LINES='stop'",)):
        code, errors = _train(workplace, nlhf, sft_file, "stopped", *macros)
        assert code == 2
        assert f"{sft_file}, line 2: the key 'completion' is missing" in errors
    code, errors = _train(workplace, nlhf, sft_file, "stopped", "BAD_LINES='ignore'")
    assert code == 2 and "BAD_LINES is 'ignore' but must be 'stop' or 'skip'" in errors


def test_skipped_lines_and_cut_texts_are_counted_listed_and_reported(
    workplace, nlhf, sft_file, tmp_path
):
    code, errors = _train(workplace, nlhf, sft_file, "left_out", "BAD_LINES='skip'")
    assert code == 0, errors
    listed = [line for line in errors.splitlines() if line.startswith("skipped: ")]
    assert [line.split(": ")[1] for line in listed] == [
        f"{sft_file}, line {number}" for number in (2, 5, 12)
    ]
    workdir = Path(workplace.path("left_out"))
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    data = next(line for line in lines if line["split"] == "data")
    assert data | {"step": 0, "split": "data"} == {
        "step": 0,
        "split": "data",
        "examples": 9,
        "truncated_inputs": 8,
        "truncated_inputs_share": pytest.approx(8 / 9),
        "truncated_targets": 1,
        "truncated_targets_share": pytest.approx(1 / 9),
        "skipped_lines": 3,
    }
    assert nlhf("report", f"--workdir={workdir}")[0] == 0
    for report in ("report.md", "report.html"):
        text = (workdir / report).read_text().replace("\N{NO-BREAK SPACE}", " ").replace("\\", "")
        assert "examples 9, truncated_inputs 8 (88.9%), truncated_targets 1 (11.1%)" in text
        assert "skipped_lines 3" in text

    # `nlhf sample` says what it cuts, and puts prompts into the form of the training.
    assert checkpoints.read_description(str(workdir))["prompt_form"] == (
        "boss - {prompt}\n\nsummary -"
    )
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("food\n" + "my boss " * 30 + "\n")
    output = tmp_path / "out.jsonl"
    code, errors = nlhf(
        "sample", f"--checkpoint={workdir}", f"--prompts={prompts}", f"--output={output}"
    )
    assert code == 0 and "1 of 2 prompts are longer than the checkpoint's 24 tokens" in errors
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["food", ("my boss " * 30).strip()]


def test_a_file_without_one_good_line_stops_the_run(workplace, nlhf, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(BAD) + "\n")
    code, errors = _train(workplace, nlhf, path, "none", "BAD_LINES='skip'")
    assert code == 2 and f"{path}: all 3 lines are bad, the first one: {path}, line 1:" in errors


def test_more_skipped_lines_than_one_reads_are_counted(workplace, nlhf, tmp_path):
    path = tmp_path / "many.jsonl"
    good = json.dumps({"prompt": "food", "completion": "um"})
    path.write_text("\n".join([*["{}"] * 50, *[good] * 8]) + "\n")
    code, errors = _train(workplace, nlhf, path, "many", "BAD_LINES='skip'")
    assert code == 0 and errors.count("skipped: ") == 21 and "skipped: ... and 30 more" in errors


def test_data_check_says_how_many_texts_a_length_would_cut(sft_file, capsys, workplace, nlhf):
    from nlhf_jax.data.vocabularies import TLDR_MINI_MODEL
    from nlhf_jax.main import main

    assert LENGTHS == '{"inputs": 24, "targets": 8}'
    arguments = [
        "data",
        "check",
        f"sft:{sft_file}",
        f"--vocabulary={TLDR_MINI_MODEL}",
        "--feature_lengths=inputs=24,targets=8",
        "--prompt_form=boss - {prompt} summary -",
    ]
    capsys.readouterr()
    assert main(arguments) == 2  # for the bad lines
    printed = capsys.readouterr().out
    assert "8 of 9 (88.9%) are longer than inputs=24 and would be cut" in printed
    assert "1 of 9 (11.1%) are longer than targets=8 and would be cut" in printed
