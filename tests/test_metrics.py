"""Metrics on disk and progress on the terminal."""

import io
import json
import math
import subprocess
import sys
import types

import pytest

from nlhf_jax.metrics import MetricWriter, Progress, duration


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_every_write_is_a_line_that_is_on_disk_at_once(tmp_path):
    writer = MetricWriter(tmp_path / "run")
    writer.write(10, "train", {"loss": 1.5, "accuracy": 0.25})
    assert lines(tmp_path / "run") == [
        {"step": 10, "split": "train", "loss": 1.5, "accuracy": 0.25}
    ]
    writer.write(10, "validation", {"loss": math.nan, "kl": math.inf})
    assert lines(tmp_path / "run")[1] == {
        "step": 10,
        "split": "validation",
        "loss": None,
        "kl": None,
    }
    writer.close()


def test_a_run_that_begins_anew_says_what_its_data_are_once(tmp_path):
    for _ in range(2):  # The first attempt is killed before it has a checkpoint.
        writer = MetricWriter(tmp_path)
        writer.write(0, "data", {"examples": 24})
        writer.write(1, "train", {"loss": 1.0})
        writer.close()
    assert [line["step"] for line in lines(tmp_path)] == [0, 1]


def test_a_continued_run_has_every_step_once(tmp_path):
    writer = MetricWriter(tmp_path)
    for step in (10, 20, 30):
        writer.write(step, "train", {"loss": float(step)})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "spl')  # cut short by a kill
    writer = MetricWriter(tmp_path, restored_step=20)
    writer.write(30, "train", {"loss": -1.0})
    writer.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        (10, 10.0),
        (20, 20.0),
        (30, -1.0),
    ]


def test_lines_that_something_made_unreadable_are_left_out_and_counted(tmp_path, capsys):
    writer = MetricWriter(tmp_path)
    for step in (1, 2, 3):
        writer.write(step, "train", {"loss": float(step)})
    writer.close()
    path = tmp_path / "metrics.jsonl"
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"\xc2\n" + first + b"[" * 100_000 + b"\n" + b"".join(rest) + b"\xff")
    MetricWriter(tmp_path, restored_step=2).close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    assert "metrics.jsonl is damaged: 2 lines of it cannot be read" in capsys.readouterr().err


@pytest.fixture
def events(monkeypatch):
    """What TensorBoard reads in a directory: `events(directory, tag)`, pairs of step and value."""
    # TensorBoard's own switch for reading without TensorFlow, which takes seconds to import.
    notf = types.ModuleType("tensorboard.compat.notf")
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", notf)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(directory, tag):
        accumulator = EventAccumulator(str(directory))
        accumulator.Reload()
        return [(event.step, event.value) for event in accumulator.Scalars(tag)]

    return read


def test_tensorboard_reads_the_events_and_forgets_what_was_done_again(tmp_path, events):
    writer = MetricWriter(tmp_path)
    for step in (10, 20, 30):
        writer.write(step, "train", {"loss": float(step)})
    writer.close()
    writer = MetricWriter(tmp_path, restored_step=20)
    writer.write(30, "train", {"loss": -1.0})
    writer.close()
    assert events(tmp_path, "train/loss") == [(10, 10.0), (20, 20.0), (30, -1.0)]


def test_a_run_killed_before_its_first_checkpoint_begins_with_no_lines(tmp_path, events):
    """Step 0 has numbers about the data, which a second start writes again."""
    for attempt in (1.0, 2.0):
        writer = MetricWriter(tmp_path, restored_step=0)
        writer.write(0, "data", {"examples": attempt})
        writer.write(10, "train", {"loss": attempt})
        writer.close()
    assert lines(tmp_path) == [
        {"step": 0, "split": "data", "examples": 2.0},
        {"step": 10, "split": "train", "loss": 2.0},
    ]
    assert events(tmp_path, "data/examples") == [(0, 2.0)]
    assert events(tmp_path, "train/loss") == [(10, 2.0)]


def test_what_was_written_is_on_disk_whatever_happens_to_the_process_then(tmp_path):
    """A resume does not write again what a saved step has; events must not wait in a thread."""
    program = (
        "import os, signal; from nlhf_jax.metrics import MetricWriter\n"
        f"writer = MetricWriter({str(tmp_path)!r})\n"
        "for step in (10, 20, 30): writer.write(step, 'train', {'loss': float(step)})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program], check=False)
    (events,) = tmp_path.glob("events.*")
    assert len(lines(tmp_path)) == 3 and events.read_bytes().count(b"train/loss") == 3


def test_writing_metrics_does_not_import_tensorflow(tmp_path):
    program = (
        "import sys; from nlhf_jax.metrics import MetricWriter\n"
        f"writer = MetricWriter({str(tmp_path)!r}); writer.write(1, 'train', {{'loss': 1.0}})\n"
        "assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def run_progress(stream, times):
    """100 steps, one per entry of `times` (seconds), with a loss."""
    now = [0.0]
    progress = Progress("sft", steps=100, stream=stream, clock=lambda: now[0])
    progress.start(0)
    for step, now[0] in enumerate(times, start=1):
        progress.update(step, loss=2.5)
    progress.message("done")
    progress.close()
    return stream.getvalue()


def test_a_terminal_gets_one_line_that_is_written_over():
    text = run_progress(_Terminal(), [1.0, 2.0])
    assert text.startswith("\rsft: step 1/100  1 steps/s  loss 2.5  1 min 39 s left")
    assert "\rsft: step 2/100" in text
    assert text.count("\n") == 1 and text.endswith("\rsft: done\n")


class _Notebook(io.StringIO):
    """No terminal, but of the module that a kernel's standard output is of."""

    __module__ = "ipykernel.iostream"


def test_a_notebook_gets_one_line_with_a_bar(monkeypatch):
    text = run_progress(_Notebook(), [0.5, *(1.0 + second for second in range(99))])
    shown = text.split("\r")
    assert shown[1].startswith(f"sft: {'░' * 20} step 2/100  2 steps/s")
    assert shown[50].startswith(f"sft: {'█' * 10}{'░' * 10} step 51/100")
    assert text.count("\n") == 1 and text.endswith("\rsft: done\n")
    stream = _Notebook()
    monkeypatch.setattr(sys, "stdout", stream)
    Progress("sft", steps=1).message("there")
    assert stream.getvalue() == "sft: there\n"


def test_what_goes_on_before_the_first_step_is_said_on_a_terminal_only():
    for stream, text in ((_Terminal(), "\rsft: compiles\r             \r"), (io.StringIO(), "")):
        progress = Progress("sft", steps=100, stream=stream)
        progress.status("compiles")
        progress.close()
        assert stream.getvalue() == text


def test_elsewhere_a_plain_line_comes_every_ten_seconds():
    text = run_progress(io.StringIO(), [2.0 * step for step in range(1, 12)])
    assert text.splitlines() == [
        "sft: step 5/100  0.5 steps/s  loss 2.5  3 min 10 s left",
        "sft: step 10/100  0.5 steps/s  loss 2.5  3 min 00 s left",
        "sft: done",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (7.46, "7.5 s"),
        (59.4, "59 s"),
        (59.7, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text
