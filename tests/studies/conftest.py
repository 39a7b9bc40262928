"""Studies are checked in float64, as the games that they are about."""

from tests.games.conftest import float64

__all__ = ["float64"]
