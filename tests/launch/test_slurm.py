"""The batch script, run by bash, with programs in the places of srun, scancel and scontrol."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launch.programs import ODD, install, launch

NEEDED = ["--gpus_per_node=8", "--time=24:00:00"]
ALL = [
    *("--job_name=nash-md", "--nodes=4", "--partition=a100,h100", "--account=me", "--qos=high"),
    *("--constraint=nvlink", "--mem=500G", "--cpus_per_task=12", "--log=logs/%x-%j.log"),
]
# In the place of srun: its arguments after its own options, as one task.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
"$@" &
echo $! >task
wait $!
"""
# Does what Slurm does: signals the steps, and not the batch script.
SCANCEL = """#!/bin/bash
echo "$@" >>told
kill -"${1#--signal=}" "$(cat task)"
"""
SCONTROL = """#!/bin/bash
echo "$@" >>told
"""
# In the place of nlhf: ends with the code `now`, or with `after` when SIGTERM comes.
TASK = """
import signal, sys, time
def saves(number, frame):
    time.sleep(0.5)
    sys.exit({after})
signal.signal(signal.SIGTERM, saves)
open("ready", "w").close()
if {now} is not None:
    sys.exit({now})
time.sleep(60)
"""


def text(arguments, job=("train",)) -> str:
    done = launch("slurm.py", *arguments, "--print", "--", *job)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def settings(script: str) -> dict[str, str]:
    pairs = re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", script, re.MULTILINE)
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_slurm_is_asked_for_what_the_options_say():
    found = settings(text([*NEEDED, *ALL]))
    assert found == {
        "job-name": "nash-md",
        "nodes": "4",
        "gpus-per-node": "8",
        "ntasks-per-node": "8",
        "cpus-per-task": "12",
        "mem": "500G",
        "time": "24:00:00",
        "partition": "a100,h100",
        "account": "me",
        "qos": "high",
        "constraint": "nvlink",
        "output": "logs/%x-%j.log",
        "open-mode": "append",
        "signal": "B:USR1@120",
        "requeue": "",
    }
    assert settings(text([*NEEDED, "--processes_per=node"]))["ntasks-per-node"] == "1"


def in_batch(directory: Path, script: str) -> subprocess.Popen:
    """Starts the script as Slurm does, in a directory of its own."""
    for name, program in (("srun", SRUN), ("scancel", SCANCEL), ("scontrol", SCONTROL)):
        path = install(directory / "bin", name, program)
    (directory / "batch").write_text(script)
    return subprocess.Popen(
        ["bash", "batch"],
        cwd=directory,
        env=os.environ | {"PATH": path, "SLURM_JOB_ID": "17"},
        stdout=subprocess.PIPE,
        text=True,
    )


SHOW = """#!/bin/sh
exec {python} -c 'import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))' "$@"
"""


@pytest.mark.parametrize("processes_per", ["gpu", "node"])
def test_a_task_gets_the_arguments_unchanged_and_its_gpus(tmp_path, processes_per):
    install(tmp_path, "python", SHOW.format(python=sys.executable))
    options = [f"--processes_per={processes_per}", f"--python={tmp_path}/python", "--env=A=b c"]
    batch = in_batch(tmp_path, text([*NEEDED, *options], ["train", *ODD]))
    output, _ = batch.communicate(timeout=300)
    arguments, environment = json.loads(output)
    assert batch.returncode == 0
    assert arguments == ["-m", "nlhf_jax.main", "train", *ODD]
    assert environment["A"] == "b c"
    # JAX takes the one GPU with the task's number on its node, unless it is told otherwise.
    gpus = environment.get("JAX_LOCAL_DEVICE_IDS")
    assert gpus == {"gpu": None, "node": "0,1,2,3,4,5,6,7"}[processes_per]


def run_batch(directory: Path, task: str, number: signal.Signals | None):
    """Runs a task, and sends the batch script a signal once it is there."""
    (directory / "task.py").write_text(task)
    install(directory, "python", f"#!/bin/sh\nexec {sys.executable} task.py\n")
    batch = in_batch(directory, text([*NEEDED, f"--python={directory}/python"]))
    while not (directory / "ready").exists() and batch.poll() is None:
        time.sleep(0.02)
    if number is not None:
        batch.send_signal(number)
    batch.wait(timeout=300)
    told = directory / "told"
    return batch.returncode, told.read_text().splitlines() if told.exists() else []


def test_near_its_time_limit_the_job_saves_and_is_queued_again(tmp_path):
    code, told = run_batch(tmp_path, TASK.format(after=143, now=None), signal.SIGUSR1)
    assert (code, told) == (0, ["--signal=TERM 17", "requeue 17"])


@pytest.mark.parametrize("after", [0, 1])
def test_what_ended_or_failed_meanwhile_is_not_queued_again(tmp_path, after):
    code, told = run_batch(tmp_path, TASK.format(after=after, now=None), signal.SIGUSR1)
    assert (code, told) == (after, ["--signal=TERM 17"])


@pytest.mark.parametrize("now", [0, 2, 143])
def test_a_code_without_the_time_limit_is_the_jobs(tmp_path, now):
    """143 of a task that was ended because another one failed is no reason to go on."""
    code, told = run_batch(tmp_path, TASK.format(after=0, now=now), None)
    assert (code, told) == (now, [])


def test_a_job_that_is_cancelled_is_not_queued_again(tmp_path):
    """scancel sends SIGTERM to the batch script as well."""
    code, told = run_batch(tmp_path, TASK.format(after=143, now=None), signal.SIGTERM)
    os.kill(int((tmp_path / "task").read_text()), signal.SIGKILL)
    assert (code, told) == (-signal.SIGTERM, [])


def test_sbatch_gets_the_script_that_print_prints(tmp_path):
    got = tmp_path / "got"
    path = install(tmp_path / "bin", "sbatch", f'#!/bin/sh\necho "$#" >"{got}"\ncat >>"{got}"\n')
    script = text([*NEEDED, *ALL], ["train", *ODD])
    job = ["--", "train", *ODD]
    assert launch("slurm.py", *NEEDED, *ALL, *job, PATH=path).returncode == 0
    assert got.read_text() == "0\n" + script
    got.unlink()
    shown = launch("slurm.py", *NEEDED, *ALL, "--dry_run", *job, PATH=path)
    assert shown.stdout == "sbatch  # reads this script:\n" + script
    assert not got.exists()
