"""What a server of `tests.llm_server` prefers, and a judge that asks it."""

from pathlib import Path

import numpy as np

from nlhf_jax.evaluation.llm_judge import LLMJudge
from nlhf_jax.evaluation.llm_prompt import Prompt
from tests import llm_server
from tests.evaluation.llm_program import SETTINGS
from tests.llm_server import LABELS, uniform


def preference(prompt: str, first: str, second: str) -> float:
    """Some preference, with a liking for what is shown first; 0 and 1 occur."""
    u = uniform(prompt, *sorted((first, second)))
    of_first = u if first < second else 1 - u
    return min(max(1.2 * of_first - 0.05, 0.0), 1.0)


def judge_of(server: llm_server.Server, cache: Path, **settings) -> LLMJudge:
    return LLMJudge(url=server.url, cache=str(cache), **(SETTINGS | settings))


def questions(prompts, first, second) -> list[tuple[str, str]]:
    """Each comparison's two questions, as the server reads them."""
    ask = Prompt(None, LABELS).question
    return [(ask(x, a, b), ask(x, b, a)) for x, a, b in zip(prompts, first, second, strict=True)]


def expected(server, prompts, first, second) -> np.ndarray:
    """The server's preference in both orders; 1/2 where its plan has no answer."""
    texts = zip(prompts, first, second, strict=True)
    rows = []
    for (x, a, b), asked in zip(texts, questions(prompts, first, second), strict=True):
        shown = [preference(x, a, b), preference(x, b, a)]
        if not server.log_probs:
            shown = [float(p >= 0.5) for p in shown]
        known = [server.fate(question) in ("answer", "mumble") for question in asked]
        # Of what is mended by a reminder there are log-probabilities too.
        p, q = (value if there else 0.5 for value, there in zip(shown, known, strict=True))
        rows.append((p, 1 - q))
    return np.array(rows)
