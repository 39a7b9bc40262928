"""A save that fails ends in one sentence; what was saved before stays, and the run continues."""

import contextlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from nlhf_jax import checkpoints
from nlhf_jax.checkpoints import Checkpoints
from nlhf_jax.errors import UserError
from tests.checkpoints.test_saving import DESCRIPTION, assert_same, make_state, restore, save
from tests.tiny_learner import large_learner, run

MEGABYTE = 1 << 20


def large_state():
    return {"params": {"w": jax.random.normal(jax.random.key(0), (MEGABYTE,))}}


@contextlib.contextmanager
def largest_file(size):
    """Inside, the system lets no file become longer than `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB."""
    directory = tmp_path / "small"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small file system")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def steps_and_parts(directory):
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_limit_met_while_writing_is_one_sentence(tmp_path, capfd, asynchronous):
    save(tmp_path, 1)
    manager = Checkpoints(tmp_path, keep=1, asynchronous=asynchronous)
    with largest_file(MEGABYTE), pytest.raises(UserError) as raised:
        manager.save(2, large_state(), DESCRIPTION, {"next_batch": 2})
        manager.wait()
    manager.close()
    assert str(raised.value) == (
        f"cannot save a checkpoint in {tmp_path / 'checkpoints'}: File too large; those before it "
        "are as they were: free or allow what is missing, and the same command continues"
    )
    assert capfd.readouterr() == ("", "")  # no traceback of a thread
    assert steps_and_parts(tmp_path) == ["1"]
    assert restore(tmp_path, make_state())[1] == {"next_batch": 1}


def test_a_full_disk_is_one_sentence_and_is_not_left_full(small_disk, capfd):
    save(small_disk, 1)
    manager = Checkpoints(small_disk, keep=1)
    manager.save(2, large_state(), DESCRIPTION, {"next_batch": 2})
    with pytest.raises(UserError, match="checkpoints: No space left on device; those before"):
        manager.save(3, make_state(), DESCRIPTION, {"next_batch": 3})  # where it is met
    manager.close()
    assert capfd.readouterr() == ("", "")
    assert steps_and_parts(small_disk) == ["1"]
    usage = os.statvfs(small_disk)
    assert usage.f_bavail > usage.f_blocks / 2
    save(small_disk, 3, keep=1)
    assert steps_and_parts(small_disk) == ["3"]


def test_a_disk_with_no_room_for_a_directory_is_one_sentence(small_disk):
    with contextlib.suppress(OSError), open(small_disk / "full", "wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    manager = Checkpoints(small_disk, keep=1)
    with pytest.raises(UserError, match="No space left on device"):
        manager.save(1, make_state(), DESCRIPTION, {"next_batch": 1})
        manager.wait()
    manager.close()
    assert steps_and_parts(small_disk) == []


def test_a_disk_that_is_read_only_is_one_sentence(small_disk):
    save(small_disk, 1)
    manager = Checkpoints(small_disk, keep=1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="checkpoints.*: Read-only file system; those before"):
        manager.save(2, make_state(), DESCRIPTION, {"next_batch": 2})
        manager.wait()
    manager.close()
    with pytest.raises(UserError, match="Read-only file system"):
        Checkpoints(small_disk / "new", keep=1)
    assert checkpoints.load(small_disk).step == 1


def test_a_run_whose_disk_was_full_continues_to_the_same_bits(tmp_path):
    program = (
        "import tests.tiny_learner as t, sys; t.run(sys.argv[1], 30, learner=t.large_learner())"
    )
    limited = (
        "import resource, tests.tiny_learner as t, sys\n"
        "class Batches(t.LinearBatches):\n"
        "    def batch(self, step):\n"
        "        if step == 25: resource.setrlimit(resource.RLIMIT_FSIZE, (10**4,) * 2)\n"
        "        return super().batch(step)\n"
        "t.run(sys.argv[1], 30, Batches(), t.large_learner())\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    failed, finished = (
        subprocess.run(
            [sys.executable, "-c", text, str(tmp_path / "full")],
            env=os.environ | {"PYTHONPATH": root},
            capture_output=True,
            text=True,
        )
        for text in (limited, program)
    )
    assert "UserError: cannot save a checkpoint in" in failed.stderr
    assert failed.stderr.rstrip().endswith("the same command continues")
    assert finished.returncode == 0 and "continues at step" in finished.stderr
    assert_same(
        checkpoints.load(tmp_path / "full").params,
        jax.device_get(run(tmp_path / "whole", 30, learner=large_learner()).params),
    )
