"""Plain functions without gin decorators, which the tests configure."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from nlhf_jax.data.prompts import PLAIN
from nlhf_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sizes:
    emb_dim: int
    activations: tuple[str, ...] = ("relu",)


def learn(
    workdir: str,
    sizes: Sizes,
    steps: int,
    rate: float = 0.1,
    kind: Literal["sp", "md"] = "sp",
    lengths: Mapping[str, int] | None = None,
    players: Sequence[str] = (),
) -> dict:
    return {
        "workdir": workdir,
        "sizes": sizes,
        "steps": steps,
        "rate": rate,
        "kind": kind,
        "lengths": lengths,
        "players": players,
    }


def fail(workdir: str, line: int = 3) -> None:
    raise UserError(f"data.jsonl, line {line}: no prompt")


# --- stages of a chain ---------------------------------------------------------------------------

CALLS: list[tuple] = []  # what the jobs below were called with
ACCEPTED: list[bool] = []  # and whether trainings were to accept changes
ERRORS: list[BaseException] = []  # what the next trainings end with


def train_stage(
    workdir, steps: int, seed: int = 0, checkpoint: str | None = None, accept_changes: bool = False
) -> None:
    """A training whose result is a file."""
    ACCEPTED.append(accept_changes)
    CALLS.append((Path(workdir).name, steps, seed, checkpoint))
    if ERRORS:
        raise ERRORS.pop()
    (Path(workdir) / "result").write_text(str(steps))


def evaluate_stage(workdir, players: Mapping[str, str]) -> None:
    CALLS.append((Path(workdir).name, dict(players)))


def write_report(workdir):
    CALLS.append(("report", str(workdir)))
    (Path(workdir) / "report.html").write_text("<html>")


def prompt_form(checkpoint):
    return PLAIN


def sample(checkpoint, prompts, num_samples, temperature, seed, **best_of):
    CALLS.append((checkpoint, num_samples, temperature, seed))
    for prompt in prompts:
        yield [f"{prompt} {number}" for number in range(num_samples)]
