"""A training that continues is the same run, or says what differs and stops."""

import json
import shutil
from pathlib import Path

import pytest

from nlhf_jax.main import main
from tests.end_to_end.conftest import Workplace, write_lines

STEPS = 2


def policy(place: Workplace, *overrides: str, run: str = "nash_md", steps: int = STEPS):
    """The command line of a policy in `policy`, on the SFT policy and the rater of the place."""
    return place.arguments(
        run,
        "policy",
        f"INITIAL_CHECKPOINT='{place.path('sft')}'",
        f"RATER_CHECKPOINT='{place.path('preference')}'",
        "TAU=0.1",
        "SCHEDULE='cosine'",
        "CHECKPOINT_PERIOD=1",
        *overrides,
        steps=steps,
    )


@pytest.fixture(scope="module")
def trained(workplace, tmp_path_factory) -> Workplace:
    """A copy of the workplace with a policy in it; tests leave it as it is."""
    place = Workplace(tmp_path_factory.mktemp("same_run") / "place")
    shutil.copytree(workplace.directory, place.directory)
    assert main(policy(place)) == 0
    return place


@pytest.fixture
def place(trained, tmp_path) -> Workplace:
    """Another copy, to do with as one likes: a moved directory besides."""
    return Workplace(Path(shutil.copytree(trained.directory, tmp_path / "place")))


def files(directory: Path) -> dict[Path, bytes]:
    """All but the lock, which says who had it last."""
    found = (path for path in directory.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: path.read_bytes() for path in found}


def record(place: Workplace, workdir: str = "policy") -> dict:
    return json.loads(Path(place.path(workdir), "run.json").read_text())


def refused(nlhf, place: Workplace, arguments: list[str]) -> dict[str, list[str]]:
    """The table of what differs, {setting: words}; asserts that nothing on disk has changed."""
    before = files(place.directory)
    code, errors = nlhf(*arguments)
    assert code == 2 and "Traceback" not in errors, errors
    assert files(place.directory) == before
    sentence, header, *rows = errors[errors.index("nlhf: error: ") :].splitlines()
    assert "another run" in sentence and "--accept_changes" in sentence
    assert header.split() == ["then", "now"]
    words = [[word for word in row.strip().split("  ") if word] for row in rows]
    return {first: [word.strip() for word in rest] for first, *rest in words}


def continues(nlhf, arguments: list[str]) -> str:
    code, errors = nlhf(*arguments)
    assert code == 0, errors
    return errors


@pytest.mark.parametrize(
    ("override", "row"),
    [
        ("TAU=0.2", {"TAU": ["0.1", "0.2"]}),
        ("SEED=3", {"SEED": ["0", "3"]}),
        ("BATCH_SIZE=16", {"BATCH_SIZE": ["8", "16"]}),
        ("LEARNING_RATE=0.5", {"LEARNING_RATE": ["0.01", "0.5"]}),
        ("BETA=0.5", {"BETA": ["0.25", "0.5"]}),
        ("optimizers.adamw.b1=0.8", {"optimizers.adamw.b1": ["0.9", "0.8"]}),
        ("OBJECTIVE=@objectives.ipo()",
         {"OBJECTIVE": ["@objectives.policy_gradient()", "@objectives.ipo()"]}),
        ("BEST_METRIC='loss'", {"BEST_METRIC": ["None", "loss"]}),
    ],
)  # fmt: skip
def test_another_setting_is_refused(trained, nlhf, override, row):
    assert refused(nlhf, trained, policy(trained, override)) == row


def test_another_opponent_is_refused(trained, nlhf):
    found = refused(nlhf, trained, policy(trained, run="self_play"))
    assert found == {
        "builders.policy.opponent": ["@opponents.geometric_mixture()", "@opponents.self_play()"]
    }


def test_several_differences_are_one_table(trained, nlhf):
    found = refused(nlhf, trained, policy(trained, "TAU=0.2", "SEED=1"))
    assert found == {"TAU": ["0.1", "0.2"], "SEED": ["0", "1"]}


def test_one_changed_row_of_the_data_is_refused(place, nlhf):
    path = Path(place.path("sft.jsonl"))
    lines = path.read_text().splitlines(keepends=True)
    row = json.loads(lines[7])
    lines[7] = json.dumps(row | {"prompt": row["prompt"].replace(" ", "  a ", 1)}) + "\n"
    path.write_text("".join(lines))
    (words,) = refused(nlhf, place, policy(place)).items()
    assert words[0] == "train data" and words[1][0] != words[1][1]
    assert all(one.startswith("24 rows, sha256 ") for one in words[1])


def test_another_vocabulary_is_refused(place, nlhf):
    other = place.path("other.model")
    sft = place.path("sft.jsonl")
    assert main(["data", "vocabulary", f"sft:{sft}", f"--output={other}", "--size=200"]) == 0
    arguments = place.arguments("sft", "sft", f"VOCABULARY='{other}'")
    assert {"vocabulary", "train data"} == refused(nlhf, place, arguments).keys()


def test_a_directory_that_means_another_step_now_is_refused(place, nlhf):
    """Both of them are shown; the step itself, named, is the same run."""
    assert main(place.arguments("preference", "preference", "KEEP_CHECKPOINTS=9", steps=7)) == 0
    assert record(place, "preference")["changes"] == []  # its learning rate is constant
    steps = [place.path(f"preference/checkpoints/{step}") for step in (6, 7)]
    found = refused(nlhf, place, policy(place))
    assert found.keys() == {"RATER_CHECKPOINT"} and found["RATER_CHECKPOINT"][1] == steps[1]
    assert found["RATER_CHECKPOINT"][0].endswith("/place/preference/checkpoints/6")
    continues(nlhf, policy(place, f"RATER_CHECKPOINT='{steps[0]}'"))


def test_the_sft_policy_trained_again_in_its_place_is_refused(place, nlhf):
    """The path and the step are the same, what is there is not."""
    shutil.rmtree(place.path("sft"))
    assert main(place.arguments("sft", "sft", "SEED=1")) == 0
    found = refused(nlhf, place, policy(place))
    assert found.keys() == {"INITIAL_CHECKPOINT"}


def test_the_same_sft_policy_made_again_is_the_same_run(place, nlhf):
    shutil.rmtree(place.path("sft"))
    assert main(place.arguments("sft", "sft")) == 0
    continues(nlhf, policy(place))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("LOG_PERIOD=7", "CHECKPOINT_PERIOD=5", "KEEP_CHECKPOINTS=2", "EVAL_PERIOD=1"),
        ("MICROBATCHES=2", "DATA_AXIS=1", "FSDP_AXIS=2", "TENSOR_AXIS=4"),
    ],
)
def test_what_changes_nothing_is_free(place, nlhf, overrides):
    """In a directory that was moved, with all that it was made from."""
    continues(nlhf, policy(place, *overrides))
    assert record(place)["changes"] == []


def test_files_and_directories_may_be_elsewhere(place, nlhf, tmp_path):
    for name in ("sft", "sft.jsonl"):
        shutil.move(place.path(name), tmp_path / f"moved_{name}")
    moved = (
        f"INITIAL_CHECKPOINT='{tmp_path}/moved_sft'",
        f"SFT_FILES={{'train': '{tmp_path}/moved_sft.jsonl'}}",
    )
    continues(nlhf, policy(place, *moved))


def test_an_accepted_change_is_recorded_beside_what_was_before(place, nlhf):
    """Beside it the step count, which is free but moves the end of the learning rate's decay."""
    arguments = policy(place, "TAU=0.2", steps=3)
    errors = continues(nlhf, [*arguments, "--accept_changes"])
    assert "from step 2 on TAU is 0.2, was 0.1" in errors
    assert "from step 2 on TRAIN_STEPS is 3, was 2" in errors
    found = record(place)
    steps = {"step": 2, "setting": "TRAIN_STEPS", "then": 2, "now": 3, "accepted": False}
    tau = {"step": 2, "setting": "TAU", "then": 0.1, "now": 0.2, "accepted": True}
    assert found["changes"] == [tau, steps]
    assert found["settings"]["objectives.policy_gradient.tau"] == 0.2
    continues(nlhf, arguments)  # accepted once
    assert refused(nlhf, place, policy(place, steps=3)) == {"TAU": ["0.2", "0.1"]}


def test_a_run_without_a_record_continues_and_gets_one(place, nlhf):
    path = Path(place.path("policy"), "run.json")
    path.unlink()
    assert "nothing says with which" in continues(nlhf, policy(place, "TAU=0.3"))
    assert record(place)["recorded_from"] == STEPS
    assert refused(nlhf, place, policy(place)) == {"TAU": ["0.3", "0.1"]}


def test_a_setting_of_a_newer_release_makes_no_other_run(place, nlhf):
    """One that the record does not know, whether its default is in the code or in a gin file."""
    path = Path(place.path("policy"), "run.json")
    old = record(place)
    for name in ("optimizers.adamw.weight_decay", "builders.policy.both_orders"):
        del old["settings"][name]
    path.write_text(json.dumps(old | {"release": "0.1.9"}))
    errors = continues(nlhf, policy(place))
    assert "from step 2 on BOTH_ORDERS is True, was not there" in errors
    assert "weight_decay" not in errors
    path.write_text(json.dumps(old | {"release": "0.1.9"}))
    found = record(place)["settings"]
    found["optimizers.adamw.clip_norm"] = 0.5
    path.write_text(json.dumps(old | {"settings": found}))
    assert "CLIP_NORM" in refused(nlhf, place, policy(place, "CLIP_NORM=1.0"))


def test_before_the_first_checkpoint_nothing_is_bound(place, nlhf):
    shutil.rmtree(place.path("policy") + "/checkpoints")
    continues(nlhf, policy(place, "TAU=0.3"))
    assert record(place)["changes"] == []


def test_validation_data_counts_where_it_chooses_the_best_step(place, nlhf):
    rows = [json.loads(line) for line in Path(place.path("sft.jsonl")).read_text().splitlines()]

    def sft(workdir: str, held_out: list, *overrides: str, steps: int) -> list[str]:
        write_lines(Path(place.path("held_out.jsonl")), held_out)
        splits = {"train": place.path("sft.jsonl"), "validation": place.path("held_out.jsonl")}
        given = (f"SFT_FILES={splits}", "EVAL_EXAMPLES=None", *overrides)
        return place.arguments("sft", workdir, *given, steps=steps)

    for count in (4, 5):
        continues(nlhf, sft("shows", rows[:count], "BEST_METRIC=None", steps=1))
    continues(nlhf, sft("chooses", rows[:4], steps=1))
    found = refused(nlhf, place, sft("chooses", rows[:5], steps=1))
    assert found.keys() == {"validation data"}


def test_a_start_that_is_gone_is_not_missed_by_a_run_that_is_beyond_it(place, nlhf):
    start = shutil.copytree(place.path("sft"), place.path("start"))
    arguments = place.arguments("sft", "beyond", f"INITIAL_CHECKPOINT='{start}'", steps=1)
    continues(nlhf, arguments)
    shutil.rmtree(start)
    continues(nlhf, arguments)
    code, errors = nlhf(*place.arguments("sft", "new", f"INITIAL_CHECKPOINT='{start}'", steps=1))
    assert code == 2 and f"{start} does not exist" in errors


def test_a_record_that_cannot_be_read_is_named(place, nlhf):
    path = Path(place.path("policy"), "run.json")
    path.write_text("{")
    code, errors = nlhf(*policy(place))
    assert code == 2 and str(path) in errors
