"""Damaged checkpoints are recognised, named, set aside, and the one before is used."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from nlhf_jax import checkpoints
from nlhf_jax.checkpoints import Checkpoints
from nlhf_jax.errors import UserError
from tests.checkpoints.test_saving import (
    DESCRIPTION,
    VOCABULARY,
    abstract,
    assert_same,
    make_state,
    restore,
    save,
    steps_in,
)
from tests.tiny_learner import run

REPOSITORY = Path(__file__).resolve().parents[2]
COMMITTED = "commit_success.txt"  # on a disk, of no consequence


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


DAMAGES = {
    "first byte": lambda path: flip(path, 0),
    "middle byte": lambda path: flip(path, path.stat().st_size // 2),
    "last byte": lambda path: flip(path, -1),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "missing": Path.unlink,
}


def files_of(directory):
    return sorted(
        str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()
    )


def contents(directory):
    return {name: (directory / name).read_bytes() for name in files_of(directory)}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A run's directory with the steps 3 and 7, of other numbers, and step 3's state."""
    directory = tmp_path_factory.mktemp("two_steps")
    save(directory, 3, state=make_state(scale=3.0))
    save(directory, 7, state=make_state(scale=7.0))
    return directory


def copied(directory, target):
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(directory, target))


@pytest.mark.filterwarnings("error")  # Nothing is printed beside the one sentence.
@pytest.mark.parametrize("damage", DAMAGES)
def test_each_file_of_the_newest_is_known_to_be_damaged_and_the_step_before_is_used(
    two_steps, tmp_path, damage
):
    names = [name for name in files_of(two_steps / "checkpoints" / "7") if name != COMMITTED]
    assert len(names) > 10
    for name in names:
        broken = copied(two_steps, tmp_path / "broken")
        step = broken / "checkpoints" / "7"
        DAMAGES[damage](step / name)
        if contents(step) == contents(two_steps / "checkpoints" / "7"):
            continue  # It was empty before.
        if name == "checksums.json" and damage in ("first byte", "last byte", "longer"):
            continue  # White space around JSON says nothing: see the test below.
        left = contents(step)
        with pytest.raises(UserError) as refused:
            checkpoints.load(broken)
        assert "is damaged" in str(refused.value) and "\n" not in str(refused.value)
        assert f"or use {broken / 'checkpoints' / '3'}, the step before it" in str(refused.value)
        manager = Checkpoints(broken, keep=2)
        state, position = manager.restore_latest(abstract(make_state()))
        (said,) = manager.set_aside
        manager.close()
        assert_same(state, make_state(scale=3.0))
        assert position == {"next_batch": 3}
        assert steps_in(broken) == [3] and contents(broken / "damaged" / "7") == left
        assert said.startswith("the checkpoint of step 7 is damaged (")
        assert f"was moved to {broken / 'damaged' / '7'}; step 3 before it is used" in said
        for sentence in (said, str(refused.value)):
            assert (name if name != "checksums.json" else "") in sentence


def test_altered_checksums_are_damage_unless_they_say_the_same(two_steps, tmp_path):
    """Every seventh byte of the list of checksums in turn."""
    broken = copied(two_steps, tmp_path / "broken")
    path = broken / "checkpoints" / "7" / "checksums.json"
    whole = path.read_bytes()
    refused = 0
    for position in range(0, len(whole), 7):
        flip(path, position)
        try:
            assert json.loads(path.read_bytes()) == json.loads(whole), position
        except (ValueError, AssertionError):
            with pytest.raises(UserError, match="is damaged"):
                checkpoints.load(broken)
            refused += 1
        path.write_bytes(whole)
    assert refused > len(whole) / 14
    assert checkpoints.load(broken).step == 7


def test_an_empty_directory_under_a_steps_name_is_damage(two_steps, tmp_path):
    broken = copied(two_steps, tmp_path / "broken")
    shutil.rmtree(broken / "checkpoints" / "7")
    (broken / "checkpoints" / "7").mkdir()
    with pytest.raises(UserError, match=r"checkpoints/7 is damaged \(description is missing\)"):
        checkpoints.load(broken)
    assert restore(broken, make_state())[1] == {"next_batch": 3}
    assert steps_in(broken) == [3]


def test_where_nothing_is_whole_the_run_is_refused_and_nothing_is_moved(two_steps, tmp_path):
    broken = copied(two_steps, tmp_path / "broken")
    for step in ("3", "7"):
        flip(broken / "checkpoints" / step / "description" / "metadata", 100)
    before = contents(broken)
    for _ in range(2):  # The second attempt does not start from scratch either.
        with pytest.raises(
            UserError,
            match=r"no checkpoint in \S+/checkpoints is whole \(step 7: description/metadata is "
            r"not what was written; step 3: description/metadata is not what was written\): copy ",
        ):
            restore(broken, make_state())
    assert contents(broken) == before


def test_a_second_damage_of_the_same_step_finds_a_free_name(two_steps, tmp_path):
    broken = copied(two_steps, tmp_path / "broken")
    for target in ("7", "7.2"):
        flip(broken / "checkpoints" / "7" / "state" / "_METADATA", 5)
        assert restore(broken, make_state())[1] == {"next_batch": 3}
        assert (broken / "damaged" / target / "state").is_dir()
        save(broken, 7)
    assert restore(broken, make_state())[1] == {"next_batch": 7}


def test_storage_that_cannot_be_read_now_is_not_taken_for_damage(two_steps, tmp_path):
    """No file can be opened for a while: the system has no descriptor left."""
    broken = copied(two_steps, tmp_path / "broken")
    manager = Checkpoints(broken, keep=2)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        # The standard streams only: a higher number may become free meanwhile, in another thread.
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        with pytest.raises(UserError, match="cannot read the checkpoints: Too many open files"):
            manager.restore_latest(abstract(make_state()))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert steps_in(broken) == [3, 7]
    assert manager.restore_latest(abstract(make_state()))[1] == {"next_batch": 7}
    manager.close()


# --- checkpoints without checksums ---------------------------------------------------------------


def as_release_0_1(step):
    """Without checksums, and without a word of them."""
    (step / "checksums.json").unlink()
    path = step / "description" / "metadata"
    description = json.loads(path.read_text())
    assert description.pop("checksums")
    path.write_text(json.dumps(description))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_without_checksums_damage_is_an_error_or_leaves_every_bit(tmp_path, damage):
    """Each kind of file in turn; some are of no consequence, but no damage gives wrong numbers."""
    state = make_state()
    whole = tmp_path / "whole"
    save(whole, 7, state=state)
    as_release_0_1(whole / "checkpoints" / "7")
    refused = {"load": 0, "restore": 0}
    for name in files_of(whole):
        broken = copied(whole, tmp_path / "broken")
        DAMAGES[damage](broken / name)
        try:
            loaded = checkpoints.load(broken)
            assert_same(loaded.params, jax.tree.map(np.asarray, state.params))
            assert loaded.vocabulary_bytes == VOCABULARY
        except UserError as error:
            assert str(broken / "checkpoints" / "7") in str(error)
            assert "damaged" in str(error)
            assert "\n" not in str(error)
            refused["load"] += 1
        try:
            assert_same(restore(broken, state)[0], state)
        except UserError as error:
            assert "damaged" in str(error) or "no checkpoint in" in str(error)
            refused["restore"] += 1
    # At the least the description, the tree, the index and the arrays themselves.
    assert refused["load"] >= 4 and refused["restore"] >= 4


def test_without_checksums_a_cut_file_is_named_with_its_size(tmp_path):
    save(tmp_path, 7)
    as_release_0_1(tmp_path / "checkpoints" / "7")
    state = tmp_path / "checkpoints" / "7" / "state"
    largest = max(state.glob("ocdbt.process_0/d/*"), key=lambda path: path.stat().st_size)
    size = largest.stat().st_size
    os.truncate(largest, size // 2)
    with pytest.raises(UserError, match=rf"{largest.name} has {size // 2} bytes of at least "):
        checkpoints.load(tmp_path)


def test_without_checksums_a_vocabulary_that_was_altered_inside_is_noticed(tmp_path):
    save(tmp_path, 7)
    as_release_0_1(tmp_path / "checkpoints" / "7")
    path = tmp_path / "checkpoints" / "7" / "description" / "metadata"
    text = path.read_text()
    assert "AAECAwQF" in text
    path.write_text(text.replace("AAECAwQF", "AAECAwQG"))
    with pytest.raises(UserError, match="vocabulary inside does not match its checksum"):
        checkpoints.load(tmp_path)


# --- the order of things -------------------------------------------------------------------------

_KILLED_WHILE_SEALING = """
import os, signal, sys
from nlhf_jax.checkpoints import saving
from tests.checkpoints.test_saving import save

whole, (workdir, when) = saving.seal, sys.argv[1:]

def seal(step):
    if step.name.startswith("7") and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    whole(step)
    if step.name.startswith("7"):
        os.kill(os.getpid(), signal.SIGKILL)

saving.seal = seal
save(workdir, 3, 7, keep=1)
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_around_the_check_leaves_the_step_before(tmp_path, when):
    """All of step 7 is written, one checkpoint is to stay, and nothing has been deleted yet."""
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED_WHILE_SEALING, str(tmp_path), when],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
    )
    assert killed.returncode == -9, killed.stderr
    assert (tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp" / "state").is_dir()
    assert steps_in(tmp_path) == [3]
    assert checkpoints.load(tmp_path).step == 3
    assert restore(tmp_path, make_state())[1] == {"next_batch": 3}


def test_what_was_written_wrong_never_takes_the_place_of_the_step_before(tmp_path, monkeypatch):
    """A disk that loses a file between writing and reading back."""
    from nlhf_jax.checkpoints import saving

    save(tmp_path, 3)
    manager = Checkpoints(tmp_path, keep=1)
    check = saving._check_and_seal

    def after_losing_a_file(step):
        files = (step / "state").glob("ocdbt.process_0/d/*")
        max(files, key=lambda path: path.stat().length).unlink()
        check(step)

    monkeypatch.setattr(saving, "_check_and_seal", after_losing_a_file)
    manager.save(7, make_state(), DESCRIPTION, {"next_batch": 7})
    with pytest.raises(UserError, match="cannot save a checkpoint in .*/checkpoints: .*; those"):
        manager.wait()
    manager.close()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]
    assert restore(tmp_path, make_state())[1] == {"next_batch": 3}


# --- in a run ------------------------------------------------------------------------------------


def test_a_run_whose_newest_checkpoint_is_damaged_ends_with_the_same_bits(tmp_path, capsys):
    run(tmp_path / "broken", 20)
    flip(tmp_path / "broken" / "checkpoints" / "20" / "state" / "manifest.ocdbt", 40)
    capsys.readouterr()
    state = run(tmp_path / "broken", 30)
    said = capsys.readouterr().err
    assert "the checkpoint of step 20 is damaged (state/manifest.ocdbt is not what was " in said
    assert "continues at step 10 of 30" in said
    assert_same(jax.device_get(state), jax.device_get(run(tmp_path / "whole", 30)))
    lines = [
        json.loads(line)
        for line in (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()
    ]
    assert {"step": 10, "split": "restarts", "damaged_checkpoints": 1.0} in lines
