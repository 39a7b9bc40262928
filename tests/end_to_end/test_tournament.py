"""A tournament is the same on every mesh and in two processes, whatever its number of prompts."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from nlhf_jax import jobs
from nlhf_jax.checkpoints.networks import open_network
from nlhf_jax.data import datasets
from nlhf_jax.data.tldr_mini import text as tldr_mini_text
from nlhf_jax.data.vocabularies import TLDR_MINI_MODEL
from nlhf_jax.main import main
from tests import tiny
from tests.end_to_end.conftest import LENGTHS, write_lines
from tests.processes.together import together

MESHES = ((1, 1, 1), (8, 1, 1), (2, 2, 2))


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """A file of 110 prompts that are sorted, as files often are."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    texts = [post.text for post, _ in tldr_mini_text.references("test")][:110]
    write_lines(path, [{"prompt": text} for text in sorted(texts)])
    return path


def play(workplace, prompts, workdir, mesh, num_prompts, seed=0, more=None, **settings):
    data = datasets.json_lines(
        str(TLDR_MINI_MODEL),
        sft={"train": workplace.path("sft.jsonl")},
        preferences={"train": workplace.path("votes.jsonl")},
        prompts={"train": str(prompts)},
        short_template=True,
    )
    jobs.evaluate(
        workdir=str(workdir),
        players={"A": workplace.path("sft"), "B": workplace.path("sft")} | (more or {}),
        reference=workplace.path("sft"),
        data=data,
        partitioner=tiny.mesh(*mesh),
        feature_lengths=json.loads(LENGTHS),
        num_prompts=num_prompts,
        batch_size=100,
        seed=seed,
        split="train",
        temperature=1.0,
        **{"rater_checkpoint": workplace.path("preference")} | settings,
    )
    return json.loads((workdir / "tournament.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("num_prompts", [pytest.param(100, marks=pytest.mark.long), 105])
def test_all_meshes_play_the_same_tournament(workplace, prompts, tmp_path, num_prompts):
    """100 prompts are a batch that 8 devices cannot share evenly; 105 end in one of 5."""
    one, *others = (
        play(workplace, prompts, tmp_path / str(number), mesh, num_prompts)
        for number, mesh in enumerate(MESHES)
    )
    assert one["prompts"] == num_prompts
    for other in others:
        assert_same(one, other)
    assert len({text for row in one["samples"] for text in row["responses"].values()}) > 5


def assert_same(one, other):
    """Two tournaments: tokens exactly, and numbers to the rounding of float32."""
    for mine, theirs in zip(one["samples"], other["samples"], strict=True):
        assert (mine["prompt"], mine["responses"]) == (theirs["prompt"], theirs["responses"])
    np.testing.assert_allclose(other["win_rates"]["rate"], one["win_rates"]["rate"], atol=1e-6)
    for mine, theirs in zip(one["players"], other["players"], strict=True):
        assert (mine["mean_tokens"], mine["distinct"]) == (
            theirs["mean_tokens"],
            theirs["distinct"],
        )
        assert theirs["kl"] == pytest.approx(mine["kl"], abs=1e-4)


@pytest.mark.slow
def test_two_processes_play_the_tournament_that_one_does(workplace, prompts, tmp_path):
    """Of two devices each, by the command line; 11 prompts are not shared evenly by four."""
    player = workplace.path("sft")
    settings = {
        "SFT_FILES": {"train": workplace.path("sft.jsonl")},
        "PREFERENCE_FILES": {"train": workplace.path("votes.jsonl")},
        "PROMPT_FILES": {"train": str(prompts)},
        "VOCABULARY": str(TLDR_MINI_MODEL),
        "SHORT_TEMPLATE": True,
        "PLAYERS": {"A": player, "B": player},
        "REFERENCE_CHECKPOINT": player,
        "RATER_CHECKPOINT": workplace.path("preference"),
        "TASK_FEATURE_LENGTHS": json.loads(LENGTHS),
        "SPLIT": "train",
        "NUM_PROMPTS": 11,
        "BATCH_SIZE": 8,
    }
    arguments = [
        "evaluate",
        "--gin_file=runs/tournament.gin",
        "--gin_file=tasks/json_lines.gin",
        *(f"--gin.{name}={value!r}" for name, value in settings.items()),
    ]
    assert main([*arguments, f"--workdir={tmp_path / 'one'}"]) == 0
    together([*arguments, "--gin.FSDP_AXIS=2", f"--workdir={tmp_path / 'two'}"])
    one, two = (
        json.loads((tmp_path / name / "tournament.json").read_text()) for name in ("one", "two")
    )
    assert_same(one, two)


@pytest.mark.slow
def test_a_part_of_the_prompts_is_drawn_with_the_seed_and_not_the_first_of_the_file(
    workplace, prompts, tmp_path
):
    in_file = [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()]
    results = [
        play(workplace, prompts, tmp_path / str(number), (1, 1, 1), 10, seed)
        for number, seed in enumerate((0, 0, 1))
    ]
    drawn = [[sample["prompt"] for sample in result["samples"]] for result in results]
    assert drawn[0] == drawn[1] != drawn[2]
    assert max(map(in_file.index, drawn[0])) > 50
    assert (results[2]["seed"], results[2]["prompts_in_split"]) == (1, 110)


@pytest.mark.slow
def test_validation_is_on_rows_drawn_with_the_seed_which_the_metrics_name(workplace):
    files = {name: workplace.path("votes.jsonl") for name in ("train", "validation")}
    arguments = workplace.arguments(
        "preference", "drawn", f"PREFERENCE_FILES={files}", "EVAL_EXAMPLES=5", "SEED=4", steps=1
    )
    assert main(arguments) == 0
    lines = Path(workplace.path("drawn/metrics.jsonl")).read_text().splitlines()
    (data,) = [row for row in map(json.loads, lines) if row["split"] == "data"]
    assert (data["validation_examples"], data["validation_seed"]) == (5, 4)


class Mortal:
    """Prefers the longer one; its process ends at some question."""

    name, votes, identity = "longer", False, 1

    def __init__(self, lives=None):
        self.lives, self.asked = lives, []

    def compare(self, prompts, first, second):
        if len(self.asked) == self.lives:
            raise KeyboardInterrupt
        self.asked.append((tuple(first), tuple(second)))
        return np.array(
            [(len(a) + 1) / (len(a) + len(b) + 2) for a, b in zip(first, second, strict=True)]
        )


def test_a_tournament_that_is_stopped_goes_on_and_asks_for_nothing_twice(
    workplace, prompts, tmp_path
):
    elsewhere = tmp_path / "elsewhere.jsonl"
    texts = [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()]
    write_lines(elsewhere, [{"prompt": text, "completion": text[:20]} for text in texts])
    settings = {
        "mesh": (1, 1, 1),
        "num_prompts": 20,
        "rater_checkpoint": None,
        "more": {
            "C": str(elsewhere),
            "D": {
                "checkpoint": workplace.path("sft"),
                "best_of": 2,
                "by": "borda",
                "rater": workplace.path("preference"),
            },
        },
        "judges": {"rater": workplace.path("preference")},
    }
    unbroken = play(workplace, prompts, tmp_path / "one", judge=Mortal(), **settings)
    (opinion,) = unbroken["opinions"]
    assert (opinion["judge"], opinion["trained_against"]) == ("rater", ["D"])  # it chose D's
    kl = {player["name"]: player["kl"] is None for player in unbroken["players"]}
    assert kl == {"A": False, "B": False, "C": True, "D": True}
    stopped = Mortal(lives=2)
    with pytest.raises(KeyboardInterrupt):
        play(workplace, prompts, tmp_path / "two", judge=stopped, **settings)
    sampled = [tmp_path / "two" / "responses" / f"{name}.jsonl" for name in "AB"]
    written = {one: one.stat().st_mtime_ns for one in sampled}
    again = Mortal()
    result = play(workplace, prompts, tmp_path / "two", judge=again, **settings)
    assert result == unbroken
    assert len(again.asked) == 4  # of six pairs
    assert not set(again.asked) & set(stopped.asked)
    assert {one: one.stat().st_mtime_ns for one in written} == written
    (of_rater,) = (tmp_path / "two" / "judgements" / "rater").glob("A,B.json")
    both = np.array(json.loads(of_rater.read_text())["orders"])
    assert np.abs(both[:, 0] - both[:, 1]).max() > 1e-4  # a preference model minds the order


def test_a_rater_is_known_again_by_its_numbers_or_by_its_training(workplace, tmp_path):
    shutil.copytree(workplace.path("preference"), tmp_path / "moved")
    rater, moved, other = (
        open_network(str(path), tiny.one_device())
        for path in (workplace.path("preference"), tmp_path / "moved", workplace.path("sft"))
    )

    def policy(trained_against):
        description = {"kind": "policy", "trained_against": trained_against}
        return dataclasses.replace(rater, description=description)

    assert moved.is_rater_of(policy(rater.identity)) is True
    earlier = {"path": str(Path(rater.identity["path"]).with_name("1")), "sha256": "another"}
    assert rater.is_rater_of(policy(earlier)) is True
    assert moved.is_rater_of(policy(earlier)) is False
    assert other.is_rater_of(policy(rater.identity)) is False
    assert rater.is_rater_of(policy({})) is False  # its scorer was no network
    assert rater.is_rater_of(policy(None)) is None  # a checkpoint of release 0.1
    assert rater.is_rater_of(other) is False  # nobody rated SFT
