"""A few hundred generated inputs, always the same; `python -m tests.nasty.fuzz` makes more."""

import pytest

from tests.nasty.fuzz import fuzz
from tests.nasty.readers import READERS


@pytest.mark.parametrize("name", sorted(READERS))
def test_no_generated_input_ends_in_a_traceback(name):
    _, tracebacks = fuzz(READERS[name], 20, seed=None)
    assert not tracebacks, tracebacks[0]
