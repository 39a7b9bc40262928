"""`nlhf run --gin_file=quickstart.gin` with a few steps a stage, from nothing to the report."""

import json

import pytest

from nlhf_jax.main import main

STAGES = {"sft": 60, "reward": 4, "preference": 4, "policy": 2}


@pytest.mark.slow
def test_the_quickstart_runs_to_its_report_and_only_once(tmp_path, capsys):
    arguments = [
        "run",
        "--gin_file=quickstart.gin",
        f"--workdir={tmp_path}",
        *(f"--gin.{name.upper()}_STEPS={steps}" for name, steps in STAGES.items()),
        *(f"--gin.{name}/WARMUP_STEPS=1" for name in ("reward", "preference")),
        "--gin.tournament/NUM_PROMPTS=16",
        "--gin.tournament/BATCH_SIZE=16",
    ]
    assert main(arguments) == 0
    names = json.loads((tmp_path / "tournament" / "tournament.json").read_text())["win_rates"]
    assert names["names"] == ["SFT", "RLHF", "SP", "MD", "BR", "EMA", "reference"]
    assert (tmp_path / "report.html").stat().st_size > 10_000
    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("complete already") == 10
    assert main([*arguments, "--gin.SEED=3"]) == 2
    assert "SEED" in capsys.readouterr().err
