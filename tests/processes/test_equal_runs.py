"""Two processes train as one does: started by `launch/local.py`, over gloo."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.learners.test_meshes import assert_same
from tests.processes import trainings

REPOSITORY = Path(__file__).resolve().parents[2]


def together(count: int, *command: str, devices: int = 2, timeout: int = 400) -> None:
    """Runs a module's program in several processes; raises what they print if they fail."""
    local = [sys.executable, "launch/local.py", f"--processes={count}", f"--timeout={timeout}"]
    done = subprocess.run(
        [*local, f"--devices_per_process={devices}", *command],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.long
def test_two_processes_of_two_devices_train_as_one_device_does(tmp_path):
    """Every learner; of the four devices two share each copy of the parameters. And every example
    of an epoch reaches one process."""
    path = tmp_path / "found.npz"
    module = "--module=tests.processes.trainings"
    together(2, module, "--", "train", str(path), "2", "2", "1", *tiny.LEARNERS)
    found = dict(np.load(path))
    rows = found.pop("rows")
    assert rows.shape == (2, 12) and sorted(rows.flat) == list(range(24))
    for kind in tiny.LEARNERS:
        here = trainings.flat(trainings.trained(kind, tiny.one_device()))
        there = {
            name.partition(":")[2]: found[name] for name in found if name.startswith(f"{kind}:")
        }
        assert_same(there, here)
