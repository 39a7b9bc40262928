"""`nlhf benchmark` as a person runs it, on a mesh of eight devices, and what it makes of times."""

import dataclasses
import json
import statistics

import gin
import pytest

from nlhf_jax.benchmarking import benchmark, figures, sweep, tables, workload
from nlhf_jax.benchmarking.measure import Memory, Timing
from nlhf_jax.main import main
from nlhf_jax.planning.peaks import Peaks
from nlhf_jax.planning.sizes import ALONE, parameters

MODEL = """
from __gin__ import dynamic_registration
from nlhf_jax.models import t5_layers
MODEL = @t5_layers.T5Config()
t5_layers.T5Config:
    vocab_size = 32
    emb_dim = 16
    num_heads = 2
    head_dim = 8
    mlp_dim = 32
    num_encoder_layers = 1
    num_decoder_layers = 1
"""
NAMES = ["encode", "decode", "rating", "gradient", "update"]


@pytest.fixture(autouse=True)
def no_configuration_stays():
    yield
    gin.clear_config()


@pytest.fixture(autouse=True)
def quick_peaks(monkeypatch):
    """The suite's devices are eight on few cores: their peaks take long and mean nothing."""
    monkeypatch.setattr("nlhf_jax.planning.peaks.measure", lambda *_, **__: Peaks(2e9, 1e9))


def test_json_holds_what_the_table_says(tmp_path, capsys):
    (tmp_path / "tiny.gin").write_text(MODEL)
    sizes = [f"--{name}={tmp_path / 'tiny.gin'}" for name in ("policy", "rater")]
    numbers = ["--batch=8", "--text=8", "--response=4", "--repeats=3"]
    mesh = ["--gin.FSDP_AXIS=2", "--gin.TENSOR_AXIS=2"]
    assert main(["benchmark", *sizes, *numbers, *mesh, f"--workdir={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert (found["devices"], found["mesh"]["fsdp"], found["mesh"]["tensor"]) == (8, 2, 2)
    assert "data 2 x fsdp 2 x tensor 2" in shown
    assert [phase["name"] for phase in found["phases"]] == NAMES
    rows = {line.split()[0]: line.split() for line in shown.splitlines() if line}
    for phase in [*found["phases"], found["step"]]:
        row = rows[phase["name"]]
        assert tables._ms(phase["median_seconds"]) in row
        assert tables._ms(phase["floor_seconds"]) in row
        assert f"{phase['share_of_peak_flops']:.0%}" in row
        assert f"{phase['share_of_peak_bytes']:.0%}" in row
        assert f"{phase['compile_seconds']:.1f}" == row[-1]
        assert len(phase["seconds"]) == 3 and min(phase["seconds"]) > 0
        assert phase["median_seconds"] == statistics.median(phase["seconds"])
        assert phase["program_bytes"] > 0
    assert found["sampled_tokens"] == 8 * 2 * 4
    assert found["peak_memory"]["bytes"] > 0 and found["sweeps"] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch=0"], "--batch is 0 but must be at least 1"),
        (["--batch=3"], "BATCH_SIZE is 3 but must be a multiple of the 8 devices"),
        (["--repeats=0"], "--repeats is 0"),
        (["--sweep=colour"], "--sweep is 'colour' but must be some of batch, text, response, size"),
        (["--sweep=text,text"], "each once"),
        (["--sweep=text"], "--figure=FILE or --workdir=DIR"),
        (["--factors=2"], "--factors says nothing without --sweep"),
        (["--figure=x.png"], "--figure says nothing without --sweep"),
        (["--sweep=text", "--factors=0,1", "--figure=x.png"], "--factors is '0,1'"),
        (["--policy=t5_1_1_huge"], "--policy is 't5_1_1_huge'"),
        (["--policy=t5_1_1_small"], "the rater's vocabulary of 256 tokens is smaller"),
        (["--gin_file=mini/egpo.gin"], "looks a step ahead"),
        (["--gin_file=mini/embedding.gin"], "jobs.train.learner is @builders.embedding"),
        (["--gin_file=mini/tournament.gin"], "mini/tournament.gin has no jobs.train.learner"),
        (["--gin_file=mini/sft.gin", "--rater=t5_1_1_small"], "--rater says nothing"),
        (
            ["--gin_file=mini/sft.gin", "--sweep=size", "--figure=x.png"],
            "only those of a policy's networks can be swept",
        ),
        (["--json=/proc/no/x.json"], "--json=/proc/no/x.json cannot be written"),
    ],
)
def test_a_wrong_setting_is_one_sentence(arguments, said, capsys):
    assert main(["benchmark", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


# --- what is made of times -----------------------------------------------------------------------


def made(run, seconds):
    """A benchmark in which the phases took 1/8 of `seconds`, 2/8, ... and the step all."""
    timings = [Timing((part * seconds / 8,), 1.0, 100) for part in (1, 2, 1, 3, 1, 8)]
    parts = [benchmark.Timed(n, t, 4e9, 1e9, 2.0) for n, t in zip(NAMES, timings, strict=False)]
    step = benchmark.Timed("step", timings[-1], 20e9, 5e9, 10.0)
    peaks = Peaks(2e9, 1e9)
    return benchmark.Benchmark(
        run, ALONE, "cpu", "cpu", peaks, step, tuple(parts), Memory(1, "process")
    )


def request():
    asked = workload.request(["mini/nash_md.gin"], batch=8, text=16, response=8)
    return asked, asked.run()


def test_a_phase_at_both_peaks_reaches_them():
    """4 GFLOP at 2 GFLOP/s, and as long for what it moves."""
    timed = benchmark.Timed("decode", Timing((1.0, 2.0, 5.0), 1.0, None), 4e9, 2e9, 2.0)
    found = timed.json(Peaks(2e9, 1e9), step=8.0)
    assert found["share_of_peak_flops"] == found["share_of_peak_bytes"] == 1
    assert (found["times_floor"], found["share_of_step"]) == (1, 0.25)


def test_a_sweep_has_the_workloads_that_the_devices_can_share():
    asked, run = request()
    by = (0.25, 0.5, 1.0, 2.0)
    batches = list(sweep.workloads(asked, run, "batch", by, devices=4))
    assert [(value, one.batch_size) for value, _, one in batches] == [(4, 4), (8, 8), (16, 16)]
    texts = list(sweep.workloads(asked, run, "text", (0.1, 1.0, 2.0), devices=1))
    assert [one.lengths for _, _, one in texts] == [(2, 8), (16, 8), (32, 8)]
    responses = list(sweep.workloads(asked, run, "response", (0.1, 0.5), devices=1))
    assert [one.lengths for _, _, one in responses] == [(16, 4)]
    sizes = list(sweep.workloads(asked, run, "size", (0.5, 1.0), devices=1))
    assert [one.model.emb_dim for _, _, one in sizes] == [32, 64]
    assert [value for value, _, _ in sizes] == [parameters(one.model) for _, _, one in sizes]
    assert sizes[1][2] == run


def test_what_takes_four_times_as_long_for_twice_as_much_grows_as_the_square(tmp_path):
    _, run = request()
    points = [
        sweep.Point(value, made(dataclasses.replace(run, batch_size=value), value**2))
        for value in (8, 16, 32)
    ]
    found = sweep.Sweep("batch", tuple(points))
    assert found.growth == pytest.approx(dict.fromkeys(["step", *NAMES], 2.0))
    assert json.loads(json.dumps(found.json()))["points"][1]["value"] == 16
    shown = tables.terminal(points[0].found, [found])
    assert "grows as" in shown and shown.count("^2.00") == 6
    assert max(map(len, shown.splitlines())) <= 110
    figure = figures.growth([found], "mini/nash_md.gin", "1 x cpu")
    drawn = {line.get_label().split()[0]: line for line in figure.axes[0].get_lines()}
    assert list(drawn["decode"].get_xdata()) == [8, 16, 32]
    assert list(drawn["decode"].get_ydata()) == [16e3, 64e3, 256e3]


def test_one_point_shows_no_growth():
    _, run = request()
    found = sweep.Sweep("text", (sweep.Point(16, made(run, 1.0)),))
    assert set(found.growth.values()) == {None}
    assert "grows as" not in tables.terminal(found.points[0].found, [found])
