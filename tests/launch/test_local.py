"""Several processes of one machine: started, told who they are, and ended together."""

import json
import os
import re
import signal
import subprocess
import time

import pytest

from tests.launch.programs import CHILD, ODD, ROOT, launch, refusal, start


def by_process(output: str) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for line in output.splitlines():
        number, text = re.fullmatch(r"\[(\d+)\] (.*)", line).groups()
        found.setdefault(int(number), []).append(text)
    return found


def test_each_process_is_told_who_it_is_and_gets_the_same_arguments():
    done = launch("local.py", "--processes=3", "--devices_per_process=2", CHILD, "--", "show", *ODD)
    assert (done.returncode, done.stderr) == (0, "")
    lines = by_process(done.stdout)
    assert sorted(lines) == [0, 1, 2]
    addresses = set()
    for number, (line,) in lines.items():
        shown = json.loads(line)
        assert shown["arguments"] == ODD
        told = shown["environment"]
        assert told["JAX_PROCESS_ID"] == str(number)
        assert told["JAX_NUM_PROCESSES"] == "3"
        assert told["JAX_NUM_CPU_DEVICES"] == "2"
        assert told["JAX_CPU_COLLECTIVES_IMPLEMENTATION"] == "gloo"
        addresses.add(told["JAX_COORDINATOR_ADDRESS"])
    (address,) = addresses
    assert re.fullmatch(r"localhost:\d+", address)


def test_lines_of_processes_never_mix():
    done = launch("local.py", "--processes=4", CHILD, "--", "talk", "100")
    assert done.returncode == 0
    for stream, last in ((done.stdout, ["no newline at the end"]), (done.stderr, [])):
        lines = by_process(stream)
        for number in range(4):
            whole = [f"line {n} of process {number}" for n in range(100)]
            assert lines[number] == whole + last


@pytest.mark.parametrize(("code", "how"), [(7, "exit code 7"), (-9, "signal SIGKILL")])
def test_when_one_fails_the_others_are_told_and_its_code_is_the_launchers(tmp_path, code, how):
    done = launch("local.py", "--processes=3", CHILD, "--", "end", "1", str(code), str(tmp_path))
    assert done.returncode == (code if code > 0 else 128 - code)
    assert done.stderr == f"local.py: process 1 ended by {how}; ends the other 2\n"
    for other in ("0", "2"):
        assert (tmp_path / other).read_text() == f"{signal.SIGTERM}\n"


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_one_that_ignores_sigterm_is_killed(tmp_path):
    done = launch(
        "local.py", "--processes=2", "--grace=1", CHILD, "--", "stubborn", "0", str(tmp_path)
    )
    assert done.returncode == 9
    assert "process 1 did not end within 1 s and is killed" in done.stderr
    (line,) = by_process(done.stdout)[1]
    assert not alive(int(line.removeprefix("pid ")))


def test_all_that_run_too_long_are_ended(tmp_path):
    arguments = ("end", "nobody", "0", str(tmp_path))
    done = launch("local.py", "--processes=2", "--timeout=2", CHILD, "--", *arguments)
    assert done.returncode == 124
    assert "--timeout: not ended after 2 s" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_to_all_once(tmp_path, number):
    launcher = start("local.py", "--processes=2", CHILD, "--", "end", "nobody", "0", str(tmp_path))
    while len(list(tmp_path.glob("*.ready"))) < 2:
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.02)
    launcher.send_signal(number)
    output, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 128 + number, output
    assert [(tmp_path / who).read_text() for who in "01"] == [f"{int(number)}\n"] * 2


def test_a_pipe_that_closes_stops_no_process(tmp_path):
    launcher = start("local.py", "--processes=2", CHILD, "--", "talk", "3000")
    launcher.stdout.readline()
    launcher.stdout.close()
    assert launcher.wait(timeout=300) == 0


def test_a_dry_run_prints_commands_that_a_shell_reads_back():
    done = launch("local.py", "--processes=2", CHILD, "--dry_run", "--", "show", *ODD)
    assert done.returncode == 0
    for number, line in enumerate(done.stdout.splitlines()):
        told = subprocess.run(
            ["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=True
        )
        shown = json.loads(told.stdout)
        assert shown["arguments"] == ODD
        assert shown["environment"]["JAX_PROCESS_ID"] == str(number)


def test_a_mistake_is_one_sentence_and_starts_nothing(tmp_path):
    done = launch("local.py", "--processes=2", "--proceses=3", CHILD, "--", "show")
    said = "unrecognized arguments: --proceses=3"
    assert refusal(done) == f"local.py: error: {said}; see local.py --help"


JAX = """
import os, sys
import jax
jax.distributed.initialize(
    num_processes=int(os.environ["JAX_NUM_PROCESSES"]), process_id=int(os.environ["JAX_PROCESS_ID"])
)
from jax.experimental import multihost_utils
gathered = multihost_utils.process_allgather(jax.numpy.asarray(10.0 + jax.process_index()))
print(jax.local_device_count(), jax.device_count(), sorted(gathered.tolist()))
"""


def test_jax_finds_the_other_processes(tmp_path):
    (tmp_path / "sums.py").write_text(JAX)
    arguments = ("--processes=2", "--devices_per_process=2", "--module=sums", "--", "run")
    variables = {"PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    done = launch("local.py", *arguments, **variables)
    assert done.returncode == 0, done.stderr
    lines = by_process(done.stdout)
    assert all("2 4 [10.0, 11.0]" in lines[number] for number in range(2))  # Gloo says more
