"""Seconds a step of Nash-MD here and in TRL's `NashMDTrainer`, on the same work, in turn.

Not a test. Run it on a quiet machine in the environment that `make_environment.sh DIR` makes:

    DIR/bin/python tests/benchmarks/against_trl.py --sizes=mini,small --json=found.json

Each side is a process of its own, and one waits while the other takes its steps. What is measured
is a step as training takes it, from the fetching of its batch to the end of its update; the first,
which compiles and warms up, is left out.
"""

import argparse
import dataclasses
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from work import MIXTURES, Work

HERE = Path(__file__).resolve().parent
SIDES = {"trl": "trl_side.py", "nlhf_jax": "nlhf_side.py"}
# About, here and of either side: the first step of a turn finds caches that the other side has
# filled, so that there are to be several.
TURN_SECONDS = 10.0

_SMALL = Work(layers=8, width=512, heads=8, mlp=2048, batch=8, prompt=128, response=64)
SIZES = {
    "mini": Work(layers=4, width=128, heads=4, mlp=512, batch=16, prompt=128, response=64),
    "small": _SMALL,
    "small_long": dataclasses.replace(_SMALL, prompt=256, response=128),
    # For GPUs: widths, depths and vocabulary of T5 1.1 Small, Base and Large.
    "t5_small": Work(16, 512, 8, 1024, batch=32, prompt=512, response=128, vocabulary=32128),
    "base": Work(24, 768, 12, 2048, batch=32, prompt=512, response=128, vocabulary=32128),
    "large": Work(48, 1024, 16, 2816, batch=16, prompt=512, response=128, vocabulary=32128),
}

NOT_EQUAL = (
    "An encoder-decoder runs a prompt through its encoder and a response through its decoder, a "
    "decoder-only network runs both through all its layers: for equal parameters outside the "
    "embeddings the first has about half the multiplications for each token.",
    "Both rate with a reward model of the policy's size, P(y > y') = sigmoid(r(y) - r(y')). TRL's "
    "has its number at the last of prompt + response tokens, which all its layers read; this "
    "project's runs these through its encoder, and one position through its decoder.",
    "T5: relative position bias, gated GELU, attention to the prompt. Llama: rotary positions, "
    "gated SiLU; its MLP is wider by two thirds of the width, which makes up for the parameters of "
    "that attention. Both have RMS norms, no biases, and logits that no embedding is tied to.",
    "TRL tokenises prompts in the step and is given words of one token each; this project is given "
    "tokens, since it tokenises before.",
    "Responses have full length: TRL bars the end by min_new_tokens, one more operation on the "
    "logits of each token; here the end is an id outside the vocabulary.",
    "TRL runs eagerly, as it does by default, with scaled-dot-product attention, fused AdamW and "
    "no gradient checkpointing (which is its default, and slower); this project's step is compiled,"
    " which the first step pays for and the figures leave out.",
    "Each computes its own metrics of a step; neither writes them.",
    "On Linux this project starts with glibc's huge pages, as its command line does; PyTorch gets "
    "them too with GLIBC_TUNABLES=glibc.malloc.hugetlb=1 before the command.",
)
MIXTURE_NOTES = {
    "as_it_is": "With transformers 5.24 TRL's mixture is no mixture: policy and reference write "
    "keys and values into one cache, so each reads the other's, and attention has twice as many of "
    "them. --mixture=two_caches mends it; --mixture=no_cache does what the comment in TRL's code "
    "says.",
    "two_caches": "TRL is mended: the reference has a cache of its own in the mixture.",
    "no_cache": "TRL is mended: its mixture is decoded without a cache, as its code says it is.",
}


class Side:
    """A process that has taken its first step, and takes more when it is asked to."""

    def __init__(self, name: str, work: Work):
        self.name = name
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / SIDES[name]), json.dumps(dataclasses.asdict(work))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=_environment(work),
        )
        self.about = self._answer()
        self.steps(1)
        self.about["first_step_after_seconds"] = time.perf_counter() - began

    def steps(self, count: int) -> float:
        """Takes so many; seconds of each in the mean."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return self._answer()["seconds"] / count

    def end(self) -> None:
        """Lets the process check what it did, and raises if that was not the work."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if self._process.wait():
            self._failed()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._failed()
        return json.loads(line)

    def _failed(self) -> None:
        raise SystemExit(f"{SIDES[self.name]} ended with {self._process.returncode}; see above")


def _environment(work: Work) -> dict[str, str]:
    threads = str(work.threads)
    paths = [str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]  # this checkout's package
    settings = {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": "1",
    }
    if work.device == "cpu":
        settings |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "JAX_PLATFORMS": "cpu"}
    else:  # Both stay on the one GPU: none may take its memory before it needs that.
        settings |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return os.environ | settings


def measure(work: Work, repeats: int, turn_seconds: float) -> dict[str, Any]:
    """What one size comes to: of both sides what they are and each turn's seconds a step."""
    sides = [Side(name, work) for name in SIDES]
    counts = [max(1, math.ceil(turn_seconds / side.steps(1))) for side in sides]
    turns = [[side.steps(n) for side, n in zip(sides, counts, strict=True)] for _ in range(repeats)]
    for side in sides:
        side.end()
    found: dict[str, Any] = {"work": dataclasses.asdict(work)}
    for side, count, of_side in zip(sides, counts, zip(*turns, strict=True), strict=True):
        found[side.name] = side.about | {"steps_in_a_turn": count, "seconds": of_side}
    found["ratios"] = [theirs / ours for theirs, ours in turns]
    return found


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(size: str, found: Mapping[str, Any]) -> str:
    work = Work(**found["work"])
    where = f"{work.threads} threads" if work.device == "cpu" else found["nlhf_jax"]["device"]
    lines = [
        f"{size}: {work.layers} layers, width {work.width}, MLP {work.mlp} ({work.causal_mlp} of "
        f"TRL's), vocabulary {work.vocabulary}; batch {work.batch}, prompt {work.prompt}, response "
        f"{work.response}; {work.precision}, {where}",
        f"  {'':10}{'seconds a step':24}{'parameters':>14}{'outside embeddings':>20}"
        f"{'first step after':>18}{'matrix product':>20}",
    ]
    for name in SIDES:
        side = found[name]
        lines.append(
            f"  {name:10}{spread(side['seconds']):24}{side['parameters']:14,}"
            f"{side['outside_embeddings']:20,}{side['first_step_after_seconds']:16.1f} s"
            f"{side['product_gflops']:12.0f} GFLOP/s"
        )
    steps = " and ".join(str(found[name]["steps_in_a_turn"]) for name in SIDES)
    lines.append(
        f"  {'ratio':10}{spread(found['ratios'])}; all are median (least to most) of "
        f"{len(found['ratios'])} turns of each side, of {steps} steps"
    )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", default="mini,small,small_long", help=", ".join(SIZES))
    parser.add_argument("--repeats", type=int, default=5, help="turns of each side")
    parser.add_argument("--turn_seconds", type=float, default=TURN_SECONDS, help="about so long")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=2, help="of each side, on a CPU")
    parser.add_argument("--mixture", choices=MIXTURES, default="as_it_is", help="of TRL's mixture")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write what is found")
    options = parser.parse_args()
    options.sizes = options.sizes.split(",")
    for size in options.sizes:
        if size not in SIZES:
            parser.error(f"--sizes has {size!r} but the sizes are {', '.join(SIZES)}")
    for name in ("repeats", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)} but must be at least 1")
    return options


def main() -> None:
    options = arguments()
    if options.device == "cpu" and hasattr(os, "sched_setaffinity"):
        # XLA has a thread for each processor that it may run on.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    names = ("device", "precision", "threads", "mixture")
    chosen = {name: getattr(options, name) for name in names}
    turns = options.repeats, options.turn_seconds
    not_equal = [*NOT_EQUAL, MIXTURE_NOTES[options.mixture]]
    found = {}
    for size in options.sizes:
        found[size] = measure(dataclasses.replace(SIZES[size], **chosen), *turns)
        print(table(size, found[size]), end="\n\n", flush=True)
        if options.json:  # After each size: the next may not end.
            whole = {"machine": platform.platform(), "sizes": found, "not_equal": not_equal}
            options.json.write_text(json.dumps(whole, indent=2) + "\n")
    print(" / ".join(found[size][name]["versions"] for name in SIDES))
    print("Not equal:", *not_equal, sep="\n- ")


if __name__ == "__main__":
    main()
