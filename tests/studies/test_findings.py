"""Findings say what the games say, and a report shows them."""

import json

import jax
import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.jobs import findings as jobs
from nlhf_jax.report import findings as files
from nlhf_jax.report.findings import Finding
from nlhf_jax.report.writing import write_report
from nlhf_jax.studies import reward_findings, solver_findings

PNG = b"\x89PNG"


def test_rater_types_are_the_paper_s():
    found = reward_findings.rater_types(points=7)
    eps = np.array(found.numbers["eps"])
    wanted = np.stack([1 / 3 + eps / 2, 1 / 3 + eps / 2, 1 / 3 - eps], axis=1)
    np.testing.assert_allclose(found.numbers["nash"], wanted, atol=1e-6)
    best = np.argmax(found.numbers["bradley_terry_optimum"], axis=1)
    np.testing.assert_array_equal(best[eps < -1e-9], 1)
    np.testing.assert_array_equal(best[eps > 1e-9], 0)
    assert found.png.startswith(PNG)


def test_the_constrained_set_is_the_paper_s():
    found = reward_findings.sampling_distribution(points=3)
    np.testing.assert_allclose(found.numbers["win_rate_50_99"], 50 / 99, atol=1e-6)
    assert found.png.startswith(PNG)


def test_nash_is_not_beaten_in_the_population_s_games():
    found = reward_findings.population_games(posts=20)
    assert found.numbers["Nash"] < 1e-9 < found.numbers["Bradley-Terry optimum"]
    assert 0 < found.numbers["posts_whose_optimum_is_beaten"] < 1


def test_cycling_says_who_converged():
    found = solver_findings.cycling(steps=100)
    kl = found.numbers["kl_after_the_last_step"]
    assert kl["Nash-MD"] < 1e-10 < 0.1 < kl["self-play"]


def test_theorem_and_speed_report_what_they_measured():
    found = solver_findings.theorem(games=4, steps=20, sizes=(3,))
    assert found.numbers["games"] == 4
    assert 0 < found.numbers["one_step"] <= 1
    fast = solver_findings.speed(games=20, sizes=(4,), steps=(10, 20))
    assert [len(row) for row in fast.table] == [3, 3]
    assert len(fast.numbers["seconds"]["4"]) == 2


def a_finding(run):
    assert jax.config.jax_enable_x64
    return Finding("one", "A < B", f"of {run} | 1", PNG, {"x": 1.5}, [["a", "b"], ["c", "2"]])


def test_a_stage_keeps_its_findings_for_the_report(tmp_path):
    with jax.enable_x64(False):
        jobs.games(str(tmp_path / "my run" / "solvers"), [a_finding])
    directory = tmp_path / "my run" / "solvers"
    assert (directory / "figures" / "one.png").read_bytes() == PNG
    assert files.load(directory) == (a_finding("my run"),)
    (directory / "timing.json").write_text('{"seconds": 1}')
    write_report(tmp_path / "my run")
    html = (tmp_path / "my run" / "report.html").read_text()
    assert "<h2>A &lt; B</h2>\n<p>of my run | 1</p>" in html
    assert '<th scope="row">c</th>' in html
    markdown = (tmp_path / "my run" / "report.md").read_text()
    assert "## A \\< B" in markdown and "figures/finding_one.png" in markdown
    assert (tmp_path / "my run" / "figures" / "finding_one.png").read_bytes() == PNG
    tree = json.loads((tmp_path / "my run" / "report.json").read_text())
    assert tree["findings"][0]["numbers"] == {"x": 1.5}


def test_findings_that_are_none_are_refused(tmp_path):
    assert files.load(tmp_path) == ()
    (tmp_path / "findings.json").write_text('{"findings": [{"name": "gone"}]}')
    with pytest.raises(UserError, match="is not a list of findings"):
        files.load(tmp_path)
