"""A run that loses a process ends in bounded time, and continues where all of them agreed."""

import pytest

from tests.processes.ends import Case, Runs

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("ends"))


@pytest.mark.parametrize(
    "case",
    [
        Case(2, "SIGTERM", "step", 1),
        Case(2, "coordinator", "save", 2),
    ],
    ids=str,
)
def test_what_is_left_of_a_run_ends_and_it_continues_to_the_same_end(runs, case):
    assert runs.fault(case) is None
