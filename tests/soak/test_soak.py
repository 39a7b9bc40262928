"""The soak's judgement, on what is known to grow and on what is known not to."""

import subprocess
import sys

import numpy as np
import pytest

from tests.soak import sampling
from tests.soak.flatness import flatness

SECONDS = np.linspace(0, 1800, 360)


def judged(values) -> str:
    return flatness("memory, MB", SECONDS, values, bound=10.0).verdict


def test_noise_and_outliers_are_flat():
    rng = np.random.default_rng(0)
    noise = 500 + rng.normal(0, 2, SECONDS.size)
    noise[::30] += 80  # a checkpoint is being written
    assert judged(noise) == "flat"


def test_a_leak_of_twice_the_bound_is_seen_under_noise():
    rng = np.random.default_rng(0)
    noise = 500 + rng.normal(0, 2, SECONDS.size)
    noise[::30] += 80
    assert judged(noise + 20 / 3600 * SECONDS) == "grows"


def test_what_noise_hides_is_not_called_flat():
    rng = np.random.default_rng(0)
    assert judged(500 + rng.normal(0, 100, SECONDS.size)) == "cannot tell"


def test_the_growth_is_an_hours():
    found = flatness("x", SECONDS, 7 + SECONDS / 3600 * 5, bound=1.0)
    np.testing.assert_allclose([found.growth, found.low, found.high], 5.0, rtol=1e-9)


LEAK = """
import sys, time
kept = []
for i in range(10_000):
    kept.append((bytearray(b"x" * 300_000), open(sys.argv[0])))
    open(sys.argv[1] + "/left%d" % i, "w").write("x" * 10_000)
    time.sleep(0.02)
"""


def test_a_process_that_leaks_memory_files_and_disk_is_found_out(tmp_path):
    """Watched for three seconds, from outside."""
    (tmp_path / "leak.py").write_text(LEAK)
    workdir = tmp_path / "work"
    workdir.mkdir()
    process = subprocess.Popen([sys.executable, str(tmp_path / "leak.py"), str(workdir)])
    try:
        found = sampling.watch(process.pid, workdir, 3.0, 0.05, lambda: process.poll() is None)
    finally:
        process.kill()
        process.wait()
    found = found[10:]  # the interpreter starts
    seconds = [one["seconds"] for one in found]
    for name, bound in (("memory", 10.0), ("files", 1.0), ("disk", 1.0)):
        assert flatness(name, seconds, [one[name] for one in found], bound).verdict == "grows"
    threads = flatness("threads", seconds, [one["threads"] for one in found], 1.0)
    assert threads.verdict == "flat"


def test_the_last_whole_line_of_metrics_has_the_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert np.isnan(sampling.last_step(path))
    path.write_text('{"step": 20, "loss": 1}\n{"step": 40, "loss": 1}\n{"step": 6')
    assert sampling.last_step(path) == 40


@pytest.mark.parametrize("count", [0, 7])
def test_few_samples_are_no_verdict(count):
    with pytest.raises(ValueError, match=f"has {count} samples but needs 8"):
        flatness("x", [1.0] * count, [1.0] * count, bound=1.0)
