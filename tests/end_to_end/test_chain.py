"""Whole chains with a few steps a stage, from nothing to the report."""

import json

import pytest

from nlhf_jax.checkpoints import load
from nlhf_jax.data.tldr_mini.v2 import population
from nlhf_jax.data.vocabularies import TLDR_MINI_MODEL
from nlhf_jax.jobs.convert import convert
from nlhf_jax.main import main
from tests.end_to_end.conftest import LENGTHS, RATER_LENGTHS

LAYERS = "t5_layers.T5Config.num_{}_layers"
POLICIES = ("rlhf", "self_play", "nash_md", "best_response", "nash_ema")
STAGES = {"sft": 60, "reward": 4, "preference": 4, "policy": 2, "response": 2}


def assert_no_guard_spoke(workdir, trainings):
    """Which would be heard: the guards have limits there."""
    metrics = list(workdir.glob("*/metrics.jsonl"))
    assert len(metrics) == trainings
    for path in metrics:
        assert "MAX_KL = 3.0" in (path.parent / "config.gin").read_text()
        assert '"guards"' not in path.read_text()


def assert_the_first_lines_say_what_was_found(workdir):
    """Who beats whom in which styles, and who can be exploited; each from its own stage."""
    verdict = json.loads((workdir / "report.json").read_text())["verdict"]
    assert verdict[0].startswith("RLHF is ") and ": MD is preferred to it with 0." in verdict[0]
    assert " is the hardest to exploit: " in verdict[1]
    (styles,) = json.loads((workdir / "styles" / "findings.json").read_text())["findings"]
    lines = (workdir / "tournament" / "responses" / "RLHF.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    plain = [population.style_of(row["prompt"], row["completion"]) == "plain" for row in rows]
    assert styles["numbers"]["RLHF"]["shares"]["plain"] == sum(plain) / len(plain)
    played = json.loads((workdir / "tournament" / "tournament.json").read_text())
    assert list(styles["numbers"]) == played["win_rates"]["names"][:-1]


@pytest.mark.slow
def test_the_quickstart_runs_to_its_report_and_only_once(tmp_path, capsys):
    arguments = [
        "run",
        "--gin_file=quickstart.gin",
        f"--workdir={tmp_path}",
        *(f"--gin.{name.upper()}_STEPS={steps}" for name, steps in STAGES.items()),
        *(f"--gin.{name}/WARMUP_STEPS=1" for name in ("reward", "preference", *POLICIES)),
        "--gin.exploit/SETTINGS={'DATA_DIR': 'stage:sft/data', 'WARMUP_STEPS': 1}",
        # Half the layers compile in half the time.
        *(
            f"--gin.{name}/{LAYERS.format(of)}=1"
            for name in ("sft", "reward", "preference")
            for of in ("encoder", "decoder")
        ),
        "--gin.tournament/NUM_PROMPTS=16",
        "--gin.tournament/BATCH_SIZE=16",
        "--gin.exploit/NUM_PROMPTS=16",
    ]
    assert main(arguments) == 0
    result = json.loads((tmp_path / "tournament" / "tournament.json").read_text())
    raters = [rater["name"] for rater in result["raters"]]
    assert raters == ["preference of the population", "preference model", "reward model"]
    assert result["win_rates"]["names"] == ["SFT", "RLHF", "SP", "MD", "BR", "EMA", "reference"]
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert_no_guard_spoke(tmp_path, trainings=8)
    assert_the_first_lines_say_what_was_found(tmp_path)
    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("complete already") == 12
    assert main([*arguments, "--gin.SEED=3"]) == 2
    assert "SEED" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("halve_from", "base"),
    [
        pytest.param(0, "huggingface", marks=pytest.mark.long),
        pytest.param(2000, None, marks=pytest.mark.long),
        pytest.param(0, "t5x", marks=pytest.mark.long),
    ],
)
def test_a_file_of_paths_sizes_and_step_counts_runs_the_chain_on_json_lines(
    workplace, tmp_path, halve_from, base
):
    """With a judge of its own, and with too few votes for one; from a base, and from nothing."""
    files = {name: workplace.path(f"{name}.jsonl") for name in ("sft", "votes")}
    splits = {
        name: dict.fromkeys(("train", "validation", "test"), path) for name, path in files.items()
    }
    layers = "".join(f"{LAYERS.format(of)} = 1\n" for of in ("encoder", "decoder"))
    (tmp_path / "model.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom nlhf_jax.models import t5_layers\n"
        f"include 'models/mini.gin'\n{layers}"
    )
    (tmp_path / "mine.gin").write_text(
        f"""
        include "json_lines.gin"
        MODEL_FILE = "{tmp_path / "model.gin"}"
        SFT_FILES = {splits["sft"]}
        PREFERENCE_FILES = {splits["votes"]}
        VOCABULARY_FILES = {{"{files["sft"]}": "sft"}}
        VOCAB_SIZE = 256
        LENGTHS = {LENGTHS}
        RATER_LENGTHS = {RATER_LENGTHS}
        SFT_STEPS = 30
        READING_STEPS = 30
        READING_BATCH_SIZE = 8
        RATER_EVAL_PERIOD = 15
        REWARD_STEPS = 30
        PREFERENCE_STEPS = 30
        POLICY_STEPS = 30
        SFT_BATCH_SIZE = 8
        RATER_BATCH_SIZE = 8
        POLICY_BATCH_SIZE = 8
        """.replace("\n        ", "\n")
    )
    out = tmp_path / "out"
    settings = [f"--gin.HALVE_FROM={halve_from}"]
    if base is not None:
        checkpoint = str(tmp_path / "base")
        convert(workplace.path("sft"), checkpoint, base)
        settings += [f"--gin.BASE_CHECKPOINT='{checkpoint}'"]
    if base == "t5x":
        settings += [f"--gin.BASE_VOCABULARY='{TLDR_MINI_MODEL}'"]
    assert main(["run", f"--gin_file={tmp_path / 'mine.gin'}", *settings, f"--workdir={out}"]) == 0
    _assert_began(out, {"base": checkpoint} if base else {})
    began = "base" if base else "reading (step 30)"
    assert began in (out / "report.html").read_text()
    result = json.loads((out / "tournament" / "tournament.json").read_text())
    assert result["judge"] == "preference embedding"
    assert result["win_rates"]["names"] == ["SFT", "RLHF", "SP", "MD", "BR", "EMA", "reference"]
    raters, page = [rater["name"] for rater in result["raters"]], (out / "report.html").read_text()
    says = "The judge is the rater that SP, MD, BR and EMA were trained against: this says"
    if halve_from:
        assert raters == ["preference model", "reward model", "13 counts"]
        assert result["trained_against_judge"] == ["SP", "MD", "BR", "EMA"] and says in page
    else:
        assert raters == ["preference model", "reward model", "judge", "13 counts"]
        assert result["trained_against_judge"] == [] and says not in page
        trained_on = [
            json.loads((out / name / "metrics.jsonl").read_text().splitlines()[0])["examples"]
            for name in ("preference", "reward", "judge")
        ]
        assert trained_on[0] == trained_on[1] and trained_on[0] + trained_on[2] == 24
    assert_no_guard_spoke(out, trainings=8 + (not halve_from) + (base is None))


def _assert_began(out, given):
    """SFT and the raters at the base, or SFT at random and the raters after reading lessons."""
    for name in ("sft", "reward", "preference"):
        record = json.loads((out / name / "run.json").read_text())
        source = given.get("base", None if name == "sft" else f"{out}/reading")
        assert [x["source"] for x in record["checkpoints"].values()] == ([source] if source else [])
        description = load(str(out / name)).description
        assert description["model"]["emb_dim"] == (16 if given else 64)
