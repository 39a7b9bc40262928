"""The work that both sides of `against_trl.py` do, and how they take their turns at it."""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

# Ids 0 and 1 are padding and the end on both sides; prompts are drawn from the others.
PAD, END, FIRST_WORD = 0, 1, 2
BETA, TAU = 0.25, 0.1  # weight of the reference in the mixture, and of the KL to it
LEARNING_RATE, CLIP_NORM, ADAM_BETAS, ADAM_EPSILON = 1e-5, 1.0, (0.9, 0.999), 1e-8

PRODUCT = 3072  # rows of the matrices whose product says how fast the machine is now
MIXTURES = ("as_it_is", "two_caches", "no_cache")

Settings = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Work:
    """A training step.

    Attributes:
      layers: of the encoder-decoder in all, the one half in its encoder; and of the decoder-only
        network.
      width, heads: of every layer.
      mlp: hidden units of the encoder-decoder's MLPs, which are gated: three matrices.
      vocabulary: V; both have an embedding and separate logits.
      batch: prompts.
      prompt, response: tokens of every row, no fewer.
      precision: of activations, "float32" or "bfloat16"; parameters are float32.
      threads: of each side, on a CPU.
      device: "cpu" or "cuda".
      mixture: how TRL samples from the mixture, of `MIXTURES`.
    """

    layers: int
    width: int
    heads: int
    mlp: int
    batch: int
    prompt: int
    response: int
    vocabulary: int = 8200
    precision: str = "float32"
    threads: int = 2
    device: str = "cpu"
    mixture: str = "as_it_is"

    @property
    def causal_mlp(self) -> int:
        """Hidden units of the decoder-only network's MLPs, a multiple of 8.

        Its layers have no cross-attention, so these are as many more as make its parameters about
        those of the encoder-decoder.
        """
        return 8 * round((self.mlp + 2 * self.width / 3) / 8)


def product_gflops(multiply: Callable[[], None]) -> float:
    """GFLOP/s of a product of two square matrices of `PRODUCT` rows, the best of some.

    `multiply` waits for its end.
    """

    def seconds() -> float:
        start = time.perf_counter()
        multiply()
        return time.perf_counter() - start

    return 2e-9 * PRODUCT**3 / min(seconds() for _ in range(5))


def run_side(start: Callable[[Work, "Turns"], None]) -> None:
    """The program of one side; its only argument is a `Work` in JSON.

    `start` says `ready` once it can take steps, and `done` after each.
    """
    start(Work(**json.loads(sys.argv[1])), Turns())


class Turns:
    """One side's end of the line to `against_trl.py`, which asks it for some steps at a time."""

    def __init__(self) -> None:
        # What libraries print goes to standard error, and cannot be taken for an answer.
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._left = 0
        self._start = 0.0

    def ready(self, about: Settings) -> bool:
        """Says what there is to know of this side; whether there are steps to take."""
        self._answer(about)
        return self._next()

    def done(self) -> bool:
        """To be called when a step has ended on the device too; whether there is another one."""
        self._left -= 1
        if self._left:
            return True
        self._answer({"seconds": time.perf_counter() - self._start})
        return self._next()

    def _answer(self, values: Settings) -> None:
        self._answers.write(json.dumps(values) + "\n")
        self._answers.flush()

    def _next(self) -> bool:
        asked = sys.stdin.readline()  # The driver's end closes when it has measured enough.
        self._left = int(asked or 0)
        self._start = time.perf_counter()
        return self._left > 0
