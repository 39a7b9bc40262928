"""Two processes train as one does: started by `launch/local.py`, over gloo."""

import numpy as np
import pytest

from tests import tiny
from tests.learners.test_meshes import assert_same
from tests.processes import trainings
from tests.processes.together import together

# An embedding's step says nothing to other devices that the other raters' do not.
KINDS = [kind for kind in (*tiny.LEARNERS, *tiny.RELATIVES) if kind != "embedding"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param(["supervised", "preference", "nash_md"], id="some"),
        pytest.param(KINDS, id="all", marks=pytest.mark.long),
    ],
)
def test_two_processes_of_two_devices_train_as_one_device_does(tmp_path, kinds):
    """Of the four devices two share each copy of the parameters. And every example
    of an epoch reaches one process."""
    path = tmp_path / "found.npz"
    mesh = ["2", "2", "1"]
    together(["train", str(path), *mesh, *kinds], module="tests.processes.trainings")
    found = dict(np.load(path))
    rows = found.pop("rows")
    assert rows.shape == (2, 12) and sorted(rows.flat) == list(range(24))
    for kind in kinds:
        here = trainings.flat(trainings.trained(kind, tiny.one_device()))
        there = {
            name.partition(":")[2]: found[name] for name in found if name.startswith(f"{kind}:")
        }
        assert_same(there, here)
