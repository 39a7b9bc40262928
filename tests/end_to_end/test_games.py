"""`nlhf run --gin_file=games.gin`, with fewer steps."""

import json
from html import unescape

import pytest

from nlhf_jax.main import main


@pytest.mark.long
def test_the_shipped_study_of_games_runs_and_reports(tmp_path):
    """Every finding is computed by the command line, and the report shows it."""
    small = {
        "solvers/STEPS": 20,
        "solvers/THEOREM_GAMES": 2,
        "solvers/THEOREM_STEPS": 20,
        "solvers/SPEED_GAMES": 16,
        "solvers/POSTS": 10,
        "learners/TRAIN_STEPS": 20,
        "learners/VOCAB_SIZE": 4,
    }
    overrides = [f"--gin.{name}={value}" for name, value in small.items()]
    assert main(["run", "--gin_file=games.gin", *overrides, f"--workdir={tmp_path}"]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    names = [finding["name"] for finding in report["findings"]]
    assert set(names) >= {
        "convergence",
        "cycling",
        "theorem",
        "speed",
        "rater_types",
        "policy_learners",
    }
    html = unescape((tmp_path / "report.html").read_text())
    for finding in report["findings"]:
        assert f"<h2>{finding['title']}</h2>" in html
        assert (tmp_path / "figures" / f"finding_{finding['name']}.png").stat().st_size > 5000
