"""A run that is killed at any moment and started again ends with the same parameters."""

import random
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from nlhf_jax import checkpoints
from tests.end_to_end.conftest import Workplace, start

STEPS = 40


def _finish(arguments: list[str], cache: Path) -> None:
    process = start(arguments, cache)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def _kill_once_it_trains(arguments: list[str], cache: Path, metrics: Path, delay: float) -> bool:
    """Whether the run was killed before it ended."""
    before = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    process = start(arguments, cache)
    while process.poll() is None:
        if metrics.exists() and len(metrics.read_text().splitlines()) > before + 1:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    return process.wait() == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("run", ["sft", "preference", "reward", "nash_ema"])
def test_a_killed_run_continues_to_the_same_parameters(workplace: Workplace, run: str, tmp_path):
    overrides = []
    if run == "nash_ema":
        overrides = [
            f"INITIAL_CHECKPOINT='{workplace.path('sft')}'",
            f"RATER_CHECKPOINT='{workplace.path('preference')}'",
            "TAU=0.1",
            "AVERAGE_DECAY=0.9",
        ]
    whole = workplace.arguments(run, f"whole_{run}", *overrides, steps=STEPS)
    killed = workplace.arguments(run, f"killed_{run}", *overrides, steps=STEPS)
    _finish(whole, tmp_path)
    metrics = workplace.directory / f"killed_{run}" / "metrics.jsonl"
    generator = random.Random(run)
    kills = [
        _kill_once_it_trains(killed, tmp_path, metrics, generator.uniform(0.0, 0.3))
        for _ in range(2)
    ]
    assert kills[0]
    _finish(killed, tmp_path)

    for which in ("", "#average") if run == "nash_ema" else ("",):
        ends = [
            checkpoints.load(workplace.path(f"{kind}_{run}") + which)
            for kind in ("whole", "killed")
        ]
        assert [end.step for end in ends] == [STEPS, STEPS]
        jax.tree.map(np.testing.assert_array_equal, ends[0].params, ends[1].params)
