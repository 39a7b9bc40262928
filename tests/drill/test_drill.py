"""A small drill: of the runs that `python -m tests.drill` kills and damages, a few of each kind.

What it buys: no kill at any of these moments, no damage to these files and no full disk loses a
step or changes a bit, nor ends in a traceback.
"""

import shutil

import pytest

from tests.drill import disks, endings
from tests.drill.drill import Drill
from tests.drill.jobs import JOBS
from tests.drill.kills import begin

pytestmark = pytest.mark.slow

JOBS_KILLED = ("sft", "preference", "nash_ema", "vocabulary")


@pytest.fixture(scope="module")
def drill(tmp_path_factory) -> Drill:
    return Drill(tmp_path_factory.mktemp("drill"), seed=0, jobs=JOBS_KILLED)


def failed(drill: Drill, family: str) -> list[str]:
    rows = [row for row in drill.rows() if row["family"] == family]
    assert rows
    return [f"{row['case']}: {row}" for row in rows if row["why"]]


def test_killed_runs_end_as_if_nothing_had_happened(drill):
    """Micro-batches, several epochs, evaluations, the best step, and the moving average."""
    drill.kill(4, JOBS_KILLED)
    assert not failed(drill, "kill")


def test_damaged_files_are_survived_or_refused_in_a_sentence(drill):
    drill.damage(4)
    assert not failed(drill, "damage")


def test_a_run_goes_on_when_its_full_disk_has_room_again(drill):
    reason = disks.can_mount(drill.place.directory)
    if reason:
        pytest.skip(reason)
    drill.disks(count=2)
    assert not failed(drill, "disk")


def test_the_drill_notices_another_end(drill, tmp_path):
    """One bit of the last state, or one digit of the metrics."""
    begin(JOBS["sft"], drill.place, tmp_path / "work")
    shutil.copytree(drill.place.undisturbed("sft"), tmp_path / "work")
    record = tmp_path / "work" / "run.json"  # which names its own directory
    undisturbed = str(drill.place.undisturbed("sft"))
    record.write_text(record.read_text().replace(undisturbed, str(tmp_path / "work")))
    whole = drill.whole["sft"].ending
    assert not endings.differences(whole, endings.ending(tmp_path / "work"))
    metrics = tmp_path / "work" / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    lines[3] = lines[3].replace("0.", "1.", 1)
    metrics.write_text("\n".join(lines))
    assert endings.differences(whole, endings.ending(tmp_path / "work")) == ["metrics.jsonl: 3"]
