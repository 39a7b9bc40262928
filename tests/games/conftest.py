"""Games are checked in float64: the theorems hold exactly, so little else may be let pass."""

import jax
import pytest


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield
