"""Bad input gets one sentence that says what to change, and exit code 2: never a traceback."""

import json
import shutil
from pathlib import Path

import pytest

from tests.end_to_end.conftest import LENGTHS, Workplace, write_lines


def _assert_one_sentence(outcome: tuple[int, str], *parts: str) -> None:
    code, errors = outcome
    last = [line for line in errors.splitlines() if line.startswith("nlhf: ")]
    assert code == 2 and len(last) == 1 and "Traceback" not in errors, errors
    for part in parts:
        assert part in last[0], last[0]


def _policy(workplace: Workplace, workdir: str, *overrides: str) -> list[str]:
    return workplace.arguments(
        "nash_md",
        workdir,
        f"INITIAL_CHECKPOINT='{workplace.path('sft')}'",
        f"RATER_CHECKPOINT='{workplace.path('preference')}'",
        "TAU=0.1",
        *overrides,
    )


def test_missing_value(workplace, nlhf):
    arguments = [a for a in workplace.arguments("sft", "bad") if "TRAIN_STEPS" not in a]
    _assert_one_sentence(nlhf(*arguments), "TRAIN_STEPS")


def test_unknown_macro(workplace, nlhf):
    arguments = workplace.arguments("sft", "bad", "TRAIN_STEP=3")
    _assert_one_sentence(nlhf(*arguments), "TRAIN_STEP", "did you mean 'TRAIN_STEPS'")


def test_missing_gin_file(nlhf, tmp_path):
    _assert_one_sentence(
        nlhf("train", "--gin_file=absent.gin", f"--workdir={tmp_path}"), "absent.gin"
    )


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"prompt": "a b", "completion": ', "line 2"),
        ('{"prompt": "a b"}', "completion"),
        ('{"prompt": " ", "completion": "a"}', "prompt"),
        ('{"prompt": 3, "completion": "a"}', "prompt"),
        ('["a"]', "line 2"),
    ],
)
def test_malformed_lines_name_file_and_line(workplace, nlhf, tmp_path, line, complaint):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n" + line + "\n")
    arguments = workplace.arguments("sft", "bad", f"SFT_FILES={{'train': '{path}'}}")
    _assert_one_sentence(nlhf(*arguments), str(path), "line 2", complaint)


def test_unreadable_lines(workplace, nlhf, tmp_path):
    arguments = workplace.arguments("sft", "bad", f"SFT_FILES={{'train': '{tmp_path}/none.jsonl'}}")
    _assert_one_sentence(nlhf(*arguments), "none.jsonl")


def test_lengths_too_short_for_the_raters_template(workplace, nlhf):
    arguments = workplace.arguments(
        "preference", "bad", 'TASK_FEATURE_LENGTHS={"inputs": 30, "text": 24, "summary": 8}'
    )
    _assert_one_sentence(nlhf(*arguments), "TASK_FEATURE_LENGTHS['inputs'] is 30", "needs")


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
def test_checkpoint_that_cannot_be_read(workplace, nlhf, tmp_path, damage):
    path = tmp_path / "checkpoint"
    if damage == "empty":
        path.mkdir()
    if damage == "truncated":
        shutil.copytree(workplace.path("sft"), path)
        newest = max((path / "checkpoints").iterdir(), key=lambda step: int(step.name))
        largest = max(newest.rglob("d/*"), key=lambda file: file.stat().st_size)
        largest.write_bytes(largest.read_bytes()[:100])
    arguments = _policy(workplace, f"bad_{damage}", f"INITIAL_CHECKPOINT='{path}'")
    _assert_one_sentence(nlhf(*arguments), str(path))


def test_vocabulary_that_does_not_fit_the_checkpoint(workplace, nlhf, tmp_path):
    sft = workplace.path("sft.jsonl")
    other = tmp_path / "other.model"
    assert nlhf("data", "vocabulary", f"sft:{sft}", f"--output={other}", "--size=200")[0] == 0
    arguments = _policy(workplace, "bad_vocabulary", f"VOCABULARY='{other}'")
    _assert_one_sentence(nlhf(*arguments), "vocabulary", workplace.path("sft"))


def test_rater_of_the_wrong_kind(workplace, nlhf):
    arguments = _policy(workplace, "bad_kind", f"RATER_CHECKPOINT='{workplace.path('sft')}'")
    _assert_one_sentence(nlhf(*arguments), "supervised", "preference")


def test_rater_to_measure_that_is_none(workplace, nlhf):
    sft = workplace.path("sft")
    data = [a for a in workplace.arguments("sft", "bad") if "FILES" in a or "VOCABULARY" in a]
    macros = [
        f"PLAYERS={{'a': '{sft}', 'b': '{sft}'}}",
        f"REFERENCE_CHECKPOINT='{sft}'",
        f"RATER_CHECKPOINT='{workplace.path('preference')}'",
        f"RATERS={{'reward model': '{sft}'}}",
        f"TASK_FEATURE_LENGTHS={LENGTHS}",
        "SPLIT='train'",
    ]
    files = ["--gin_file=runs/tournament.gin", "--gin_file=tasks/json_lines.gin"]
    workdir = f"--workdir={workplace.path('bad_raters')}"
    outcome = nlhf("evaluate", *files, *data, *(f"--gin.{macro}" for macro in macros), workdir)
    _assert_one_sentence(outcome, "RATERS has 'reward model'", sft, "supervised")


def test_lengths_without_the_responses(workplace, nlhf):
    arguments = _policy(workplace, "bad_lengths", 'TASK_FEATURE_LENGTHS={"inputs": 24}')
    _assert_one_sentence(nlhf(*arguments), "TASK_FEATURE_LENGTHS has no 'targets'", "a policy")


def test_batch_that_the_devices_cannot_share(workplace, nlhf):
    _assert_one_sentence(
        nlhf(*workplace.arguments("sft", "bad", "BATCH_SIZE=8", "MICROBATCHES=3")), "BATCH_SIZE"
    )


def test_long_texts_are_cut_and_counted(workplace, nlhf, tmp_path):
    path = tmp_path / "long.jsonl"
    rows = [{"prompt": "my boss " * 40, "completion": "my boss"}] * 8
    write_lines(path, rows)
    arguments = workplace.arguments("sft", "long", f"SFT_FILES={{'train': '{path}'}}", steps=1)
    assert nlhf(*arguments)[0] == 0
    lines = Path(workplace.path("long"), "metrics.jsonl").read_text().splitlines()
    counts = next(row for row in map(json.loads, lines) if row["split"] == "data")
    assert counts["truncated_inputs"] == 8 and counts["truncated_targets"] == 0
