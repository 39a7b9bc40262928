"""The real step as it is lowered without arrays, and what comes of compiling it."""

import dataclasses
import importlib.util
import math
import time

import gin
import jax
import pytest

from nlhf_jax.planning import compiling, memory, programs
from nlhf_jax.planning.chips import topology
from nlhf_jax.planning.compiling import Request, compiled
from tests import tiny

MODEL = """\
from __gin__ import dynamic_registration

from nlhf_jax.models import t5_layers

MODEL = @t5_layers.T5Config()
t5_layers.T5Config:
    vocab_size = 256
    emb_dim = 64
    num_heads = 4
    head_dim = 16
    mlp_dim = 128
    num_encoder_layers = 1
    num_decoder_layers = 1
    scan_layers = True
"""
LENGTHS = "TASK_FEATURE_LENGTHS={'inputs': 8, 'targets': 4, 'text': 8, 'summary': 4}"
SETTINGS = (LENGTHS, "TRAIN_STEPS=10", "BATCH_SIZE=8")
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)


@pytest.fixture(autouse=True)
def no_configuration_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    gin.clear_config()


def request(tmp_path, name: str, *overrides: str, where: str = "here") -> Request:
    model = tmp_path / "model.gin"
    model.write_text(MODEL)
    files = [f"runs/{name}.gin"]
    policy = name not in ("sft", "preference", "reward")
    if not policy:
        files.append(str(model))
    sizes = str(model) if policy else None
    return Request(tuple(files), (*SETTINGS, *overrides), (), sizes, sizes, where)


def held(tree) -> int:
    return sum(math.prod(tiny.part(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", ["nash_md", "nash_ema", "rlhf", "sft", "preference", "reward"])
def test_what_stays_on_a_chip_is_what_the_learner_holds(name, tmp_path):
    axes = ("DATA_AXIS=2", "FSDP_AXIS=2", "TENSOR_AXIS=2")
    frozen = ("FROZEN_DTYPE='bfloat16'",) if name in ("nash_md", "rlhf") else ()
    asked = request(tmp_path, name, *axes, *frozen)
    run = asked.run()
    learner, read, batch = programs.abstract_learner(
        run, asked.gin_files, asked.overrides, (), jax.devices()[:8]
    )
    there = held((learner.abstract_state(), read))
    counted = sum(memory.stays(run, run.mesh_on(8)).values())
    assert counted == pytest.approx(there, abs=100)  # counters
    assert {array.shape[0] for array in batch.values()} == {8}


# --- in a process of its own ---------------------------------------------------------------------


def compile_for(asked: Request, **settings) -> compiling.Compiled:
    return compiled(asked, asked.run(), topology(asked.topology), **{"timeout": 300} | settings)


def test_a_compiler_that_takes_too_long_has_failed(tmp_path):
    started = time.monotonic()
    found = compile_for(request(tmp_path, "sft", where="v5e:2x2"), timeout=0.05)
    if importlib.util.find_spec("libtpu") is None:
        assert (found.verdict, "libtpu is not installed" in found.reason) == ("not compiled", True)
    else:
        assert found.verdict == "compiler failed" and "more than" in found.reason
    assert time.monotonic() - started < 60


def test_a_program_for_gpus_is_not_compiled_without_one(tmp_path):
    assert compile_for(request(tmp_path, "sft", where="h100:8")).verdict == "not compiled"


@pytest.mark.parametrize(
    ("code", "out", "err", "verdict", "reason"),
    [
        (-11, "", "*** SIGSEGV", "compiler failed", "signal 11"),
        (1, "", "Traceback\nImportError: libtpu", "compiler failed", "ImportError: libtpu"),
        (0, '{"error": "INTERNAL: it is broken"}', "", "compiler failed", "it is broken"),
        (0, 'noise\n{"peak": 1e9, "collectives": 3, "sent": 10}', "", "fits", ""),
        (0, '{"peak": 17e9, "collectives": null, "sent": null}', "", "does not fit", ""),
    ],
)
def test_whatever_the_compiler_does_is_classified(code, out, err, verdict, reason):
    found = compiling._understood(code, out, err, topology("v5e:2x2"))
    assert found.verdict == verdict and reason in found.reason


def test_an_error_about_memory_says_how_much_was_wanted():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. "
        "Exceeded hbm capacity by 4.75G."
    )
    found = compiling._refused(message)
    assert (found.verdict, found.peak) == ("does not fit", 20.5 * 2**30)


@pytest.mark.slow
def test_a_step_is_compiled_for_the_devices_at_hand(tmp_path):
    """All of them, in a process that has as many; what stays is a part of the peak."""
    asked = request(tmp_path, "nash_md", "FSDP_AXIS=2")
    found = compile_for(asked)
    run = asked.run()
    assert found.verdict == "fits", found
    mesh = run.mesh_on(len(jax.devices()))
    assert found.peak > 1.05 * sum(memory.stays(run, mesh).values())


@needs_libtpu
@pytest.mark.slow
def test_a_step_is_compiled_for_a_tpu_once(tmp_path):
    asked = request(tmp_path, "nash_md", "TENSOR_AXIS=4", where="v5e:2x2")
    program = tmp_path / "program.txt"
    found = compile_for(asked, program=str(program))
    assert found.verdict == "fits", found
    assert 0 < found.peak < 1e9 and "HloModule" in program.read_text()
    assert found.collectives > 0 and found.sent > 0  # sums, for every token
    again = compile_for(asked)
    assert again == dataclasses.replace(found, remembered=True)


@needs_libtpu
def test_a_topology_that_the_compiler_does_not_know_is_one_sentence(tmp_path, capsys):
    from nlhf_jax.main import main

    model = tmp_path / "model.gin"
    model.write_text(MODEL)
    files = ["--gin_file=runs/sft.gin", f"--gin_file={model}", "--topology=v5e:1x1"]
    assert main(["plan", *files, *(f"--gin.{setting}" for setting in SETTINGS)]) == 2
    error = capsys.readouterr().err
    assert "--topology is 'v5e:1x1'" in error and len(error.splitlines()) == 1
