"""`nlhf plan` in closed form, as a person runs it, and what it reads of gin files."""

import dataclasses
import json
import subprocess
import sys

import gin
import pytest

from nlhf_jax.main import main
from nlhf_jax.planning import phases, plan, runs, sizes
from nlhf_jax.planning.chips import topology
from nlhf_jax.planning.compiling import Request, with_setting
from nlhf_jax.planning.memory import memory
from tests.paths import golden_directory

TLDR = ("tldr/nash_md.gin",)
PUBLISHED = {"policy": "t5_1_1_large", "rater": "t5_1_1_xl"}
COMMAND = ["plan", "--gin_file=tldr/nash_md.gin", "--topology=v5e:4x4", "--no_compile"]
SIZES = [f"--{name}={size}" for name, size in PUBLISHED.items()]


@pytest.fixture(autouse=True)
def no_configuration_stays():
    yield
    gin.clear_config()


def read(*overrides: str, files=TLDR) -> runs.Run:
    return runs.read(files, overrides, **PUBLISHED)


def test_the_published_run_is_planned_without_data_and_checkpoints(tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert main([*COMMAND, *SIZES, f"--json={out}"]) == 0
    shown = capsys.readouterr().out
    for said in ("783,150,080", "2,849,757,184", "16 x v5e", "chip-hours", "assumed:", "--rater"):
        assert said in shown
    found = json.loads(out.read_text())
    assert found["networks"] == {
        "policy": 783_150_080,
        "reference": 783_150_080,
        "rater": 2_849_757_184,
    }
    assert found["fits"] and found["compiled"] is None and found["chips"] == 16
    names = [phase["name"] for phase in found["phases"]]
    assert names == ["encode", "decode", "score", "reference", "gradient", "update"]
    least, most = found["step_seconds"]
    assert 0 < least < most
    assert found["chip_hours"] == pytest.approx([16 * hours for hours in found["run_hours"]])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--policy=t5_1_1_large --rater=t5_1_1_xl"),
        ([SIZES[0]], "RATER_CHECKPOINT is not set"),
        (["--policy=t5_1_1_huge", SIZES[1]], "--policy is 't5_1_1_huge'"),
        ([*SIZES, "--gin.FSDP_AXIS=3"], "data=1 x fsdp=3 x tensor=4 needs 12 devices"),
        ([*SIZES, "--gin.BATCH_SIZE=30"], "BATCH_SIZE is 30"),
        ([*SIZES, "--topology=v5e"], "--topology is 'v5e'"),
        ([*SIZES, "--gin.TASK_FEATURE_LENGTHS={'inputs': 512}"], "has no 'targets'"),
        ([*SIZES, "--gin.INITIAL_CHECKPOINT=None"], "INITIAL_CHECKPOINT"),
        ([*SIZES, "--program=x"], "--program says nothing"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(arguments, said, capsys):
    assert main([*COMMAND, *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


def test_a_rater_has_its_sizes_in_its_gin_file(capsys):
    assert main(["plan", "--gin_file=tldr/preference.gin", *COMMAND[2:]]) == 0
    assert "2,849,757,184" in capsys.readouterr().out
    assert main(["plan", "--gin_file=tldr/preference.gin", *COMMAND[2:], SIZES[0]]) == 2
    assert "--policy says nothing" in capsys.readouterr().err


def test_players_are_those_of_the_opponent():
    assert read().players == (("policy",), ("policy", "reference"))
    assert read(files=("tldr/self_play.gin",)).players == (("policy",), ("policy",))
    assert read(files=("tldr/rlhf.gin",)).players == (("policy",),)
    ema = read(files=("tldr/nash_ema.gin",))
    assert (ema.players[1], ema.kept) == (("average",), 1)
    ipo = read(files=("tldr/online_ipo.gin",))
    assert ipo.rows == 2  # both responses are learned from


def test_a_checkpoint_tells_its_sizes():
    """T5X's own, of two layers, in place of a name."""
    checkpoint = golden_directory() / "t5x_tiny" / "native" / "checkpoint_3"
    run = runs.read(TLDR, [f'INITIAL_CHECKPOINT="{checkpoint}"'], rater="t5_1_1_xl")
    assert run.model.num_encoder_layers == 2


# --- what costs depend on ------------------------------------------------------------------------


def costs(run: runs.Run, chips: str = "v5e:4x4"):
    where = topology(chips)
    mesh = run.mesh_on(where.chips)
    return {phase.name: phase for phase in phases.phases(run, mesh)}, memory(run, mesh)


def test_all_chips_together_do_what_one_does():
    """Matrix products are shared without a rest on this mesh."""
    run = read()
    one = dataclasses.replace(run, mesh=(-1, 1, 1))
    alone = sum(phase.flops for phase in phases.phases(one, sizes.ALONE))
    shared = sum(phase.flops for phase in phases.phases(run, sizes.Mesh(1, 4, 4)))
    assert 16 * shared == pytest.approx(alone)


def test_microbatches_and_rematerialisation_take_less_memory_and_more_work():
    run = read("BATCH_SIZE=128")
    (now, peak) = costs(run)
    (parts, peak_parts) = costs(dataclasses.replace(run, microbatches=8))
    assert peak_parts.phases["gradient"] < peak.phases["gradient"]
    assert parts["gradient"].wire.least > now["gradient"].wire.least
    (kept, peak_kept) = costs(dataclasses.replace(run, remat=False))
    assert peak_kept.phases["gradient"] > peak.phases["gradient"]
    assert kept["gradient"].flops < now["gradient"].flops


def test_a_run_that_does_not_fit_is_told_what_helps():
    run = read("REMAT=False", "BATCH_SIZE=2048", "FROZEN_DTYPE='float32'")
    found = dict(plan.helps(run, topology("v5e:4x4")))
    now = costs(run)[1].peak
    assert "REMAT = True" in found and "MICROBATCHES = 8" in found and "BATCH_SIZE = 1024" in found
    assert all(peak < now for peak in found.values())


def test_what_is_decoded_with_all_weights_sends_less_and_reads_more():
    run = read()
    mesh = run.mesh_on(16)
    trained, replicated = (
        {p.name: p for p in phases.phases(dataclasses.replace(run, decode_layout=one), mesh)}[
            "decode"
        ]
        for one in ("trained", "replicated")
    )
    assert replicated.wire.most < trained.wire.least / 4
    assert replicated.memory.least > trained.memory.least


@pytest.mark.parametrize("true", [3, 16, 17, 250, 1000])
@pytest.mark.parametrize("start", [1, 16, 100])
def test_the_largest_that_fits_is_found(true, start):
    asked = []

    def fits(batch):
        asked.append(batch)
        return batch <= 4 * true

    assert plan.largest(fits, 4, start) == 4 * true
    assert len(asked) < 25 and all(batch % 4 == 0 for batch in asked)


def test_nothing_fits_if_one_does_not():
    assert plan.largest(lambda batch: False, 4, 16) == 0


def test_the_largest_batch_fits_and_more_do_not(capsys):
    arguments = [*COMMAND, *SIZES, "--largest_batch"]
    assert main(arguments) == 0
    line = [line for line in capsys.readouterr().out.splitlines() if "largest batch" in line]
    found = int(line[0].split(": ")[1].split()[0])
    limit = topology("v5e:4x4").chip.memory
    assert costs(read(f"BATCH_SIZE={found}"))[1].peak <= limit
    assert costs(read(f"BATCH_SIZE={found + 4}"))[1].peak > limit


def test_a_setting_replaces_an_earlier_one():
    request = Request(TLDR, ("BATCH_SIZE=32", "TAU=0.1"), (), None, None, "v5e:4x4")
    assert with_setting(request, "BATCH_SIZE=64").overrides == ("TAU=0.1", "BATCH_SIZE=64")


PROGRAM = """
import sys

for name in ("tensorflow", "tensorflow_text", "tensorflow_datasets", "seqio"):
    sys.modules[name] = None  # makes an import of that name fail

from nlhf_jax.main import main

sys.exit(main(sys.argv[1:]))
"""


def test_a_plan_needs_no_tensorflow():
    command = [sys.executable, "-c", PROGRAM, *COMMAND, *SIZES]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    assert "chip-hours" in found.stdout
