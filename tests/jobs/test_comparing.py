"""The study of learners: which stages it is made of, and what its last one makes of the others."""

import json

import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import tournament
from nlhf_jax.evaluation.judges import PopulationJudge
from nlhf_jax.evaluation.tournament import Player
from nlhf_jax.jobs import comparing
from nlhf_jax.jobs.match import RESULT

LEARNERS = {
    "RLHF": {"gin_file": "rlhf.gin", "macros": {"TAU": 0.1, "RATER_CHECKPOINT": "stage:reward"}},
    "SP": {"gin_file": "self_play.gin"},
    "EMA1": {"gin_file": "nash_ema.gin", "also": {"EMA1*": "#average"}},
}
SETTINGS = {
    "before": [{"name": "sft", "job": "train"}],
    "learners": LEARNERS,
    "only": None,
    "seeds": 2,
    "exploited_seeds": 1,
    "exploit": {"RESPONSE_STEPS": 7},
    "tournament": "tournament.gin",
    "summary": "comparison.gin",
    "rater": "stage:preference",
    "reference": "stage:sft",
}


def stages(**settings):
    return {stage["name"]: stage for stage in comparing.stages(**SETTINGS | settings)}


def test_every_learner_is_trained_from_every_seed_on_its_own_terms():
    found = stages()
    for seed in (0, 1):
        assert found[f"RLHF_{seed}"]["macros"] == {
            "INITIAL_CHECKPOINT": "stage:sft",
            "RATER_CHECKPOINT": "stage:reward",
            "TAU": 0.1,
            "SEED": seed,
        }
        assert found[f"SP_{seed}"]["macros"]["RATER_CHECKPOINT"] == "stage:preference"


def test_all_runs_play_and_some_of_each_are_exploited():
    found = stages()
    players = found["tournament"]["macros"]["PLAYERS"]
    runs = [f"{name}#{seed}" for seed in (0, 1) for name in ("RLHF", "SP", "EMA1", "EMA1*")]
    assert list(players) == ["SFT", *runs]
    assert players["EMA1*#1"] == "stage:EMA1_1#average"
    assert found["exploit"]["macros"] == {
        "POLICIES": {
            "SFT": "stage:sft",
            "RLHF_0": "stage:RLHF_0",
            "SP_0": "stage:SP_0",
            "EMA1_0": "stage:EMA1_0",
            "EMA1_average_0": "stage:EMA1_0#average",
        },
        "RESPONSE_STEPS": 7,
    }
    judged = found["comparison"]["macros"]["JUDGED"]
    assert list(judged) == ["SFT", *runs[:4]]
    assert judged["EMA1*#0"] == "stage:exploit/chain/judged_EMA1_average_0"


def test_some_learners_alone_can_be_asked_for():
    found = stages(only=["SP"], exploited_seeds=0)
    assert list(found) == ["sft", "SP_0", "SP_1", "tournament", "comparison", "report"]
    with pytest.raises(UserError, match="ONLY names 'PPO', but the learners are RLHF, SP, EMA1"):
        stages(only=["PPO"])
    with pytest.raises(UserError, match="SEEDS is 0"):
        stages(seeds=0)


PROMPTS = [str(number) for number in range(60)]


def played(directory, strength):
    """A tournament of responses that say how good they are."""
    rng = np.random.default_rng(0)
    players = {
        name: Player([f"{mean + rng.normal(0, 0.3):.4f}" for _ in PROMPTS], rng.gamma(2.0, 1.0, 60))
        for name, mean in strength.items()
    }

    def preferences(prompts, first, second):
        gap = [float(one) - float(other) for one, other in zip(first, second, strict=True)]
        return 1 / (1 + np.exp(-np.asarray(gap)))

    directory.mkdir(parents=True)
    result = tournament.play(PROMPTS, players, PopulationJudge(preferences))
    (directory / RESULT).write_text(result.to_json())
    return str(directory)


def test_its_findings_are_the_tournaments_(tmp_path):
    runs = {"SFT": -2.0, "RLHF#0": -0.5, "RLHF#1": -0.6, "SP#0": 0.5, "SP#1": 0.6, "BR#0": 0.0}
    table = played(tmp_path / "tournament", runs)
    judged = {
        name: played(tmp_path / f"judged_{name}", {"policy": 0.0, "response": by})
        for name, by in {"RLHF#0": 1.5, "SP#0": 0.1, "BR#0": 1.0}.items()
    }
    comparing.comparison(str(tmp_path / "comparison"), table, judged)
    found = json.loads((tmp_path / "comparison" / "findings.json").read_text())["findings"]
    assert [one["name"] for one in found] == ["answers", "learners", "published"]
    said = {row[0]: row[1] for row in found[0]["table"][1:]}
    assert said["Does a preference model beat a reward as the thing to optimise?"] == "Yes"
    assert said["Is the best response to SFT exploited?"] == "Yes"
    assert said["Which learner is the hardest to exploit for the same samples?"] == "SP"
    assert found[0]["headline"].startswith("Does a preference model")
    order = [row[0] for row in found[1]["table"][1:]]
    assert order == ["SP", "BR", "RLHF", "SFT"]
    assert found[1]["table"][-1][3] == "–"  # nothing was trained against SFT
    assert found[1]["table"][-1][4].startswith("SP, 0.9")  # who beats SFT most
    assert found[2]["table"][1][:2] == ["RLHF over SFT", "0.990"]
