"""A chain of stages: each runs once, resumes, and does not mix configurations."""

import json
import re
from pathlib import Path

import gin
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.jobs import chain, stages
from tests import gin_example

HEADER = "from __gin__ import dynamic_registration\nfrom tests import gin_example\n"
TRAIN = (
    HEADER
    + """
STEPS = %gin.REQUIRED
SEED = 0
CHECKPOINT = None
gin_example.train_stage.steps = %STEPS
gin_example.train_stage.seed = %SEED
gin_example.train_stage.checkpoint = %CHECKPOINT
"""
)
EVALUATE = HEADER + "gin_example.evaluate_stage.players = %PLAYERS\n"

STAGES = [
    {"name": "sft", "job": "train", "gin_file": "train.gin", "macros": {"STEPS": 3}},
    {
        "name": "nash",
        "job": "train",
        "gin_file": ["train.gin"],
        "macros": {"STEPS": 5, "CHECKPOINT": "stage:sft"},
    },
    {
        "name": "tournament",
        "job": "evaluate",
        "gin_file": "evaluate.gin",
        "macros": {"PLAYERS": {"SFT": "stage:sft", "MD": "stage:nash/checkpoints#average"}},
    },
    {"name": "report", "job": "report"},
]


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    (tmp_path / "train.gin").write_text(TRAIN)
    (tmp_path / "evaluate.gin").write_text(EVALUATE)
    monkeypatch.chdir(tmp_path)
    jobs = {
        "train": "tests.gin_example:train_stage",
        "evaluate": "tests.gin_example:evaluate_stage",
        "report": "tests.gin_example:write_report",
    }
    for module in (chain, stages):
        monkeypatch.setattr(module, "JOBS", jobs)
    gin_example.CALLS.clear()
    yield tmp_path
    gin.clear_config()


def run(stages=STAGES, overrides=(), workdir="out", accept_changes=False):
    """Runs the chain; returns the names of the stages that ran."""
    gin_example.CALLS.clear()
    gin_example.ACCEPTED.clear()
    chain.run(workdir, stages, overrides, accept_changes=accept_changes)
    return [call[0] for call in gin_example.CALLS]


def with_macros(name, **macros):
    return [
        stage | {"macros": stage["macros"] | macros} if stage["name"] == name else stage
        for stage in STAGES
    ]


def test_every_stage_runs_in_order_with_its_own_configuration(capsys):
    assert run() == ["sft", "nash", "tournament", "report"]
    assert gin_example.CALLS == [
        ("sft", 3, 0, None),
        ("nash", 5, 0, "out/sft"),
        ("tournament", {"SFT": "out/sft", "MD": "out/nash/checkpoints#average"}),
        ("report", "out"),
    ]
    assert "STEPS = 5" in Path("out/nash/config.gin").read_text()
    timing = json.loads(Path("out/stages.json").read_text())
    assert [stage["name"] for stage in timing["stages"]] == ["sft", "nash", "tournament", "report"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[1/4] sft (train): starts"
    assert re.fullmatch(r"\[1/4\] sft \(train\): done in \d\.\d s", lines[1])
    assert lines[-7].split() == ["stage", "job", "time"]
    assert lines[-1] == "report: out/report.html"


def test_a_complete_stage_is_not_run_again(capsys):
    run()
    capsys.readouterr()
    assert run() == []
    assert "[2/4] nash (train): complete already" in capsys.readouterr().out


def test_an_interrupted_stage_resumes_and_later_ones_follow():
    run(STAGES[:1])
    gin_example.ERRORS.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run()
    assert [call[0] for call in gin_example.CALLS] == ["nash"]
    assert run() == ["nash", "tournament", "report"]


def test_an_interrupted_stage_does_not_resume_with_another_configuration():
    gin_example.ERRORS.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run()
    with pytest.raises(
        UserError,
        match=r"stage 'sft' in out/sft was begun with another configuration, .* --accept_changes",
    ):
        run(with_macros("sft", STEPS=4))


def test_a_new_stage_at_the_end_is_run_alone():
    run(STAGES[:2])
    assert run() == ["tournament", "report"]


def test_a_moved_chain_is_still_complete(tmp_path):
    run()
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert run(workdir=tmp_path / "elsewhere") == []


def test_comments_in_a_gin_file_change_nothing(tmp_path):
    run()
    (tmp_path / "train.gin").write_text("# A comment.\n" + TRAIN)
    assert run() == []


def test_a_complete_stage_whose_configuration_changed_is_an_error():
    run()
    with pytest.raises(UserError) as raised:
        run(with_macros("nash", STEPS=6))
    assert str(raised.value).splitlines() == [
        "stage 'nash' in out/nash is complete with another configuration, so use another "
        "--workdir, set it back, or delete out/nash out/tournament out/report to run what is "
        "affected again",
        "         then  now",
        "  STEPS  5     6",
    ]
    assert gin_example.CALLS == []
    with pytest.raises(UserError, match="is complete with another configuration"):
        run(with_macros("nash", STEPS=6), accept_changes=True)


def test_an_interrupted_stage_goes_on_with_another_configuration_that_is_accepted():
    gin_example.ERRORS.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run()
    assert run(with_macros("sft", STEPS=4), accept_changes=True) == [
        "sft",
        "nash",
        "tournament",
        "report",
    ]
    assert gin_example.ACCEPTED == [True, True]
    assert run(with_macros("sft", STEPS=4)) == []


def test_a_training_with_a_record_judges_by_itself_whether_it_is_the_same():
    gin_example.ERRORS.append(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run()
    Path("out/sft/run.json").write_text("{}")
    assert run(with_macros("sft", STEPS=4))[0] == "sft"
    assert gin_example.ACCEPTED == [False, False]


def test_nothing_runs_if_any_stage_is_wrong():
    with pytest.raises(UserError, match="stage 'nash': no gin file speaks of the macro STEP "):
        run(with_macros("nash", STEP=6))
    assert gin_example.CALLS == []


def test_a_change_in_an_early_stage_is_noticed_through_the_later_ones():
    """Also where the early stage's own record is gone."""
    run()
    changed = with_macros("sft", SEED=1)
    with pytest.raises(UserError, match=r"(?s)stage 'sft' .*\n  SEED +0 +1$"):
        run(changed)
    Path("out/sft/stage.json").unlink()
    with pytest.raises(UserError, match=r"stage 'nash' .*: a stage that it builds on has changed"):
        run(changed)


def test_overrides_win_over_the_macros_of_the_stage():
    run(overrides=["nash/STEPS=7"])
    assert gin_example.CALLS[1] == ("nash", 7, 0, "out/sft")


def test_overrides_reach_one_stage():
    run(overrides=["nash/SEED=7", "sft/gin_example.train_stage.seed=8"])
    assert gin_example.CALLS[:2] == [("sft", 3, 8, None), ("nash", 5, 7, "out/sft")]


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("nahs/SEED=7", "--gin.nahs/SEED=7: there is no stage 'nahs'; did you mean 'nash'?"),
        ("x/SEED=7", "there is no stage 'x'; there are sft, nash, tournament, report"),
        ("nash/SEDE=7", "stage 'nash': no gin file speaks of the macro SEDE"),
    ],
)
def test_a_wrong_override_is_an_error(override, text):
    with pytest.raises(UserError) as raised:
        run(overrides=[override])
    assert text in str(raised.value)


@pytest.mark.parametrize("when", [True, False])
def test_a_stage_that_is_left_out_has_another_one_stand_in(when):
    judge = STAGES[1] | {"name": "judge", "when": when, "instead": "nash"}
    players = {"SFT": "stage:sft", "J": "stage:judge/checkpoints#average", "MD": "stage:judge"}
    tournament = STAGES[2] | {"macros": {"PLAYERS": players}}
    ran = run([*STAGES[:2], judge, tournament])
    assert ran == ["sft", "nash", *["judge"] * when, "tournament"]
    there = "out/judge" if when else "out/nash"
    found = gin_example.CALLS[-1][1]
    assert found == {"SFT": "out/sft", "J": f"{there}/checkpoints#average", "MD": there}


@pytest.mark.parametrize(
    ("stage", "text"),
    [
        ("sft", "entry 1 is 'sft' but must be a dict"),
        ({"name": "a"}, "entry 1 has no 'job'"),
        ({"name": "a", "job": "train", "gin": "x"}, "has the key 'gin' but only"),
        ({"name": "a/b", "job": "train"}, "'a/b' cannot name a stage"),
        ({"name": "a", "job": "tarin"}, "the job of 'a' is 'tarin' but must be one of train"),
        (
            {"name": "a", "job": "train", "gin_file": "nowhere.gin"},
            "stage 'a': the gin file nowhere.gin does not exist",
        ),
        (
            STAGES[1],
            "stage 'nash' uses stage:sft, but no stage before it is called so",
        ),
    ],
)
def test_a_malformed_stage_is_an_error(stage, text):
    with pytest.raises(UserError) as raised:
        run([stage])
    assert text in str(raised.value)


def test_two_stages_have_two_names():
    with pytest.raises(UserError, match="there is a stage 'sft' before it already"):
        run([STAGES[0], STAGES[0]])


def test_no_stages_are_an_error():
    with pytest.raises(UserError, match=r"chain.run.stages is empty"):
        run([])


def test_macros_for_all_stages_reach_those_that_speak_of_them(work):
    chain.run(work / "out", STAGES, macros={"SEED": 7, "STEPS": 4, "PLAYERS": {}})
    calls = {call[0]: call[1:] for call in gin_example.CALLS}
    assert calls["sft"] == (3, 7, None)  # its own STEPS win
    assert calls["nash"][:2] == (5, 7)
    assert set(calls["tournament"][0]) == {"SFT", "MD"}


def test_a_macro_for_all_that_no_stage_speaks_of_is_an_error(work):
    with pytest.raises(UserError, match="chain.run.macros has SEDE, but no stage's gin file"):
        chain.run(work / "out", STAGES, macros={"SEDE": 7})


def test_a_directory_in_which_only_modules_had_other_names_goes_on(work, capsys):
    """Another release names modules otherwise, so that its fingerprints are others."""
    chain.run(work / "out", STAGES)
    for path in (work / "out").glob("*/stage.json"):
        marker = json.loads(path.read_text())
        marker["config"] = marker["config"].replace("from tests import", "from nlhf_jax import")
        marker["fingerprint"] = "that of another release"
        path.write_text(json.dumps(marker))
    gin_example.CALLS.clear()
    chain.run(work / "out", STAGES)
    assert not gin_example.CALLS and "complete already" in capsys.readouterr().out
    changed = [STAGES[0] | {"macros": {"STEPS": 4}}, *STAGES[1:]]
    with pytest.raises(UserError, match=r"STEPS +3 +4"):
        chain.run(work / "out", changed)
