"""Submits an `nlhf` command to Slurm, on GPU nodes; at its time limit it saves and is queued again.

    python launch/slurm.py --job_name=nash-md --nodes=4 --gpus_per_node=8 --time=24:00:00 \\
        --partition=gpu -- train --gin_file=tldr/nash_md.gin --workdir=/scratch/me/nash_md

One process starts per GPU (--processes_per=node: one per node); each finds the others by the
variables that srun sets. --print writes the batch script to stdout instead, to be kept or changed.

--save_seconds before the time limit Slurm signals the script, which sends SIGTERM to the
processes: they save and end with 143, and the script puts the job back into the queue, where the
same command continues it. A node that fails, or is taken away, does so too (`--requeue`). What ends
otherwise, by scancel or by an error, is not queued again.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from launch.common import NLHF, Parser, at_least, exit_with, job_of, name, required, run, shown

# `srun` runs in the background because bash runs a trap only between commands, or in `wait`. The
# second `wait` gives srun's own code: the first one ends when the signal comes. Not `srun
# --signal`, nor Slurm's SIGTERM to the steps: only the script can ask for another turn, and only
# if it knows why they ended.
_BODY = """
ending=
trap 'ending=1; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
{srun} &
step=$!
wait "$step"
code=$?
if [ -n "$ending" ]; then
  wait "$step"
  code=$?
  if [ "$code" -eq 143 ]; then
    echo "the time limit is near: saved, and queued again"
    exec scontrol requeue "$SLURM_JOB_ID"
  fi
fi
exit "$code"
"""


def script(options: argparse.Namespace, job: Sequence[str]) -> str:
    """The batch script; `options` have been checked by the parser."""
    per_gpu = options.processes_per == "gpu"
    settings = {
        "job-name": options.job_name,
        "nodes": options.nodes,
        # Not per task: a process picks its GPU by its number among those of the node.
        "gpus-per-node": options.gpus_per_node,
        "ntasks-per-node": options.gpus_per_node if per_gpu else 1,
        "cpus-per-task": options.cpus_per_task,
        "mem": options.mem,
        "time": options.time,
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "output": options.log,
        "open-mode": "append",
        "signal": f"B:USR1@{options.save_seconds}",
    }
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH --{key}={value}" for key, value in settings.items() if value is not None]
    lines.append("#SBATCH --requeue")
    srun = ["srun", "--kill-on-bad-exit=1"]
    if options.cpus_per_task is not None:  # srun does not take it from the batch job by itself
        srun.append(f"--cpus-per-task={options.cpus_per_task}")
    variables = list(options.env)
    if not per_gpu:  # else JAX would take the one GPU with the process's number on its node
        numbers = ",".join(map(str, range(options.gpus_per_node)))
        variables.append(f"JAX_LOCAL_DEVICE_IDS={numbers}")
    environment = ["env", *variables] if variables else []
    command = [*srun, *environment, options.python, "-m", NLHF, *job]
    return "\n".join(lines) + "\n" + _BODY.format(srun=shlex.join(command))


def main(arguments: Sequence[str]) -> int:
    """The command line; returns the exit code."""
    own, job = job_of(arguments)
    parser = Parser(__doc__)
    add = parser.add_argument
    slurm = name("slurm")
    add("--job_name", type=slurm, default="nlhf", metavar="NAME", help="(nlhf)")
    add("--nodes", type=at_least(1), default=1, metavar="N", help="(1)")
    add("--gpus_per_node", type=at_least(1), required=True, metavar="N", help="of each node")
    add("--processes_per", choices=("gpu", "node"), default="gpu", help="(gpu)")
    add("--time", type=name("slurm time"), required=True, help="limit: minutes, or D-HH:MM:SS")
    add("--save_seconds", type=at_least(1), default=120, metavar="N", help="to save in (120)")
    for option in ("--partition", "--account", "--qos", "--constraint", "--mem"):
        add(option, type=slurm, metavar="NAME", help="as sbatch's")
    add("--cpus_per_task", type=at_least(1), metavar="N", help="as sbatch's")
    add("--log", type=name("file"), default="%x-%j.log", help="of all processes (%%x-%%j.log)")
    add("--python", type=name("file"), default=sys.executable, help="on the nodes (this one)")
    add("--env", type=name("environment"), action="append", default=[], metavar="NAME=VALUE")
    add("--print", action="store_true", help="print the batch script, and do not submit it")
    parser.add_dry_run()
    options = parser.parse_args(own)
    text = script(options, required(job))
    if options.dry_run:
        print(shown(["sbatch"]) + "  # reads this script:")
    if options.dry_run or options.print:
        print(text, end="")
        return 0
    return run(["sbatch"], given=text).returncode


if __name__ == "__main__":
    exit_with(main)
