"""The study of learners with a few steps a stage, from nothing to its answers."""

import json

import pytest

from nlhf_jax.evaluation.results import TournamentResult
from nlhf_jax.main import main

LEARNERS = ("RLHF", "SP", "EMA1")
RUNS = [f"{name}_{seed}" for seed in (0, 1) for name in LEARNERS]


@pytest.mark.slow  # the only run of these stages one after another, and of seeds beside each other
def test_the_study_runs_to_its_answers(tmp_path, capsys):
    settings = {"DATA_DIR": "stage:sft/data", "WARMUP_STEPS": 1, "EVAL_PERIOD": 2}
    arguments = [
        "run",
        "--gin_file=studies/paper_table.gin",
        "--scale=small",
        f"--workdir={tmp_path}",
        f"--gin.ONLY={list(LEARNERS)}",
        "--gin.SEEDS=2",
        "--gin.SFT_STEPS=60",
        *(f"--gin.{name}_STEPS=2" for name in ("REWARD", "PREFERENCE", "POLICY", "RESPONSE")),
        *(f"--gin.{name}/WARMUP_STEPS=1" for name in ("reward", "preference", *RUNS)),
        f"--gin.exploit/SETTINGS={settings}",
        "--gin.NUM_PROMPTS=16",
        "--gin.tournament/BATCH_SIZE=16",
        "--gin.exploit/NUM_PROMPTS=16",
    ]
    assert main(arguments) == 0
    played = TournamentResult.load(tmp_path / "tournament" / "tournament.json").win_rates
    players = ["SFT", *(f"{n}#{s}" for s in (0, 1) for n in (*LEARNERS, "EMA1*")), "reference"]
    assert list(played.names) == players
    assert played.between("SP#0", "SP#1").value != 0.5  # other seeds are other runs
    found = json.loads((tmp_path / "comparison" / "findings.json").read_text())["findings"]
    assert [one["name"] for one in found] == ["answers", "learners", "published"]
    questions = [one["question"] for one in found[0]["numbers"]["answers"]]
    assert len(questions) == 4 and all(question.endswith("?") for question in questions)
    assert set(found[1]["numbers"]["names"]) == {"SFT", *LEARNERS, "EMA1*"}
    judged = [path.name for path in tmp_path.glob("exploit/chain/judged_*")]
    assert len(judged) == 5
    verdict = json.loads((tmp_path / "report.json").read_text())["verdict"]
    assert any(questions[0] in line for line in verdict)
    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("complete already") == 3 + len(RUNS) + 4
