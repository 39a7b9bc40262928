"""Asks an LLM judge about many comparisons, to be killed: URL CACHE NUMBER."""

import signal
import sys

import numpy as np

from nlhf_jax.evaluation.llm_judge import LLMJudge

SETTINGS = {
    "model": "referee",
    "concurrency": 8,
    "timeout": 4.0,
    "attempts": 10,
    "backoff": 0.005,
    "asks": 2,
    "max_unanswered": 0.5,
    "max_tokens": 5,
    "labels": ("1", "2"),
    "log_probs": 5,
}


def comparisons(number: int) -> tuple[list[str], list[str], list[str]]:
    """Prompts and two different responses to each; all of them are different."""
    prompts = [f"the {n}th text,\nwith {{first}} and 100 % of it" for n in range(number)]
    first, second = ([f"{kind} {n}" for n in range(number)] for kind in ("good", "bad, short"))
    return prompts, first, second


def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what `&` starts
    url, cache, number = sys.argv[1:]
    judge = LLMJudge(url=url, cache=cache, **SETTINGS)
    print("asks", flush=True)
    answers = judge.both_orders(*comparisons(int(number)))
    np.save(cache + ".npy", answers)
    print(judge.counts()["replies"], judge.counts()["from_cache"])


if __name__ == "__main__":
    main()
