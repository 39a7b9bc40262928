"""Training, sampling, a tournament and a report through the command line, on a few JSON lines."""

import json
import os

import pytest

from nlhf_jax.checkpoints import open_checkpoint
from nlhf_jax.main import main
from tests.end_to_end.conftest import LENGTHS, Workplace


def _policy(workplace: Workplace, run: str, rater: str, *overrides: str) -> list[str]:
    return workplace.arguments(
        run,
        run,
        f"INITIAL_CHECKPOINT='{workplace.path('sft')}'",
        f"RATER_CHECKPOINT='{workplace.path(rater)}'",
        "TAU=0.1",
        *overrides,
    )


def test_a_checkpoint_samples_without_a_gin_file(workplace, capsys, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("my boss steals food\nmy cousin tells lies\n")
    arguments = ["sample", f"--checkpoint={workplace.path('sft')}", f"--prompts={prompts}"]
    capsys.readouterr()
    assert main([*arguments, "--num_samples=2", "--seed=1"]) == 0
    first = capsys.readouterr().out
    rows = [json.loads(line) for line in first.splitlines()]
    assert [row["prompt"] for row in rows] == ["my boss steals food"] * 2 + [
        "my cousin tells lies"
    ] * 2
    assert main([*arguments, "--num_samples=2", "--seed=1"]) == 0
    assert capsys.readouterr().out == first
    assert (
        main(["sample", f"--checkpoint={workplace.path('preference')}", f"--prompts={prompts}"])
        == 2
    )


def test_the_best_step_of_sft_is_that_of_the_lowest_validation_loss(workplace):
    """The warm-up's first step has the rate 0 and changes nothing; those after it do damage."""
    files = {split: workplace.path("sft.jsonl") for split in ("train", "validation")}
    settings = (f"SFT_FILES={files}", "EVAL_EXAMPLES=None", "CHECKPOINT_PERIOD=1")
    worse = (f"INITIAL_CHECKPOINT='{workplace.path('sft')}'", "LEARNING_RATE=4.0", "WARMUP_STEPS=4")
    assert main(workplace.arguments("sft", "best", *settings, *worse, steps=4)) == 0
    lines = (workplace.directory / "best" / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["split"] == "validation"]
    losses = {row["step"]: row["loss"] for row in rows}
    assert list(losses) == [1, 2, 3, 4] and min(losses, key=losses.get) == 1
    assert open_checkpoint(workplace.path("best") + "#best").step == 1
    assert open_checkpoint(workplace.path("best")).step == 4


def test_policies_play_a_tournament_under_a_preference_model(workplace):
    assert main(_policy(workplace, "nash_md", "preference")) == 0
    assert main(workplace.arguments("reward", "reward")) == 0
    assert main(_policy(workplace, "rlhf", "reward")) == 0
    for kind in ("embedding", "antisymmetric"):
        assert main(workplace.arguments(kind, kind)) == 0
    assert main(_policy(workplace, "nash_ema", "embedding", "AVERAGE_DECAY=0.9")) == 0
    players = {
        "SFT": workplace.path("sft"),
        "SFT again": workplace.path("sft"),
        "MD": workplace.path("nash_md"),
        "RLHF": workplace.path("rlhf"),
        "EMA*": workplace.path("nash_ema") + "#average",
    }
    kinds = {"P": "preference", "R": "reward", "E": "embedding", "A": "antisymmetric"}
    raters = {name: workplace.path(kind) for name, kind in kinds.items()}
    together = [raters["P"], raters["E"]]
    data = [
        argument
        for argument in workplace.arguments("sft", "tournament")
        if any(name in argument for name in ("FILES", "VOCABULARY", "workdir"))
    ]
    macros = [
        f"PLAYERS={players}",
        f"REFERENCE_CHECKPOINT='{workplace.path('sft')}'",
        f"RATER_CHECKPOINT='{workplace.path('preference')}'",
        f"RATERS={raters | {'both': together}}",
        f"TASK_FEATURE_LENGTHS={LENGTHS}",
        "SPLIT='train'",
        "CALIBRATE=True",
        "NUM_PROMPTS=10",
        "BATCH_SIZE=8",
    ]
    files = ["--gin_file=runs/tournament.gin", "--gin_file=tasks/json_lines.gin"]
    assert main(["evaluate", *files, *data, *(f"--gin.{macro}" for macro in macros)]) == 0
    result = json.loads((workplace.directory / "tournament" / "tournament.json").read_text())
    opened = json.loads((workplace.directory / "tournament" / "run.json").read_text())
    steps = {one["source"]: one["path"] for one in opened["checkpoints"]}
    assert steps.keys() == {*players.values(), *raters.values()}
    last = max(map(int, os.listdir(workplace.path("nash_ema/checkpoints"))))
    average = f"{workplace.path('nash_ema')}/checkpoints/{last}#average"
    assert steps[players["EMA*"]] == average
    names, rate = result["win_rates"]["names"], result["win_rates"]["rate"]
    assert names == [*players, "reference"]
    for i in range(len(names)):
        for j in range(len(names)):
            assert abs(rate[i][j] + rate[j][i] - 1.0) < 1e-9
    # One policy under two names draws independently: their responses are not the same.
    texts = [sample["responses"] for sample in result["samples"]]
    assert any(row["SFT"] != row["SFT again"] for row in texts)
    # The reference of KL is the first player itself, on its own samples.
    assert result["players"][0]["kl"] == 0.0
    assert result["trained_against_judge"] == ["MD"] and result["training_unknown"] == []
    # Single votes: whatever a rater prefers, each agrees with it, does not, or is half right.
    assert [rater["name"] for rater in result["raters"]] == [*raters, "both"]
    assert result["judging"] == "P"
    for rater in result["raters"]:
        accuracy = rater["accuracy"]
        assert rater["comparisons"] == 24
        assert rater["log_loss"] >= 0 and 0.5 <= rater["certainty"] <= 1
        assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
        assert accuracy["value"] * 48 == pytest.approx(round(accuracy["value"] * 48))
    assert main(["report", f"--workdir={workplace.directory}"]) == 0
    html = (workplace.directory / "report.html").read_text()
    assert "The judge is the rater that MD was trained against" in html
    assert "RLHF" in html and "nash_md" in html and "How raters predict votes" in html
    assert (workplace.directory / "figures" / "reliability.png").exists()


def test_easy_pairs_are_in_the_metrics_and_the_report_but_not_in_what_is_measured(workplace):
    """Without votes in its steps a rater is measured on the same votes as ever."""
    settings = ("EASY_STEPS=6", "EASY_SHARE=0.25", "EVAL_EXAMPLES=None")
    assert main(workplace.arguments("embedding", "easy", *settings)) == 0
    lines = (workplace.directory / "easy" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    (data,) = (row for row in rows if row["split"] == "data")
    assert data["easy_pair_steps"] == 6 and data["easy_pairs_in_batch"] == 0.25
    (validation,) = (row for row in rows if row["split"] == "validation")
    # Of the 24 votes each is right, wrong or half right.
    assert validation["accuracy"] * 48 == pytest.approx(round(validation["accuracy"] * 48))
    assert main(["report", f"--workdir={workplace.directory / 'easy'}"]) == 0
    assert "easy_pair_steps" in (workplace.directory / "easy" / "report.html").read_text()
    record = json.loads((workplace.directory / "easy" / "run.json").read_text())
    assert set(record["data"]) == {"train", "easy_pairs", "validation"}
