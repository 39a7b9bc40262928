"""Hand-made bad inputs: (reader, name) -> the files, and what must come of them.

`REFUSED` says that the sentence must hold some words; `ACCEPTED` that nothing may be lost.
"""

from tests.nasty.corpus import checkpoints, people, reports, texts
from tests.nasty.corpus.case import Case


def cases() -> list[Case]:
    return [*texts.cases(), *checkpoints.cases(), *reports.cases(), *people.cases()]
