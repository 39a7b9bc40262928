"""Nash learning from human feedback in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from nlhf_jax.api import load as load

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`nlhf_jax.load`, which imports JAX when it is first asked for."""
    if name == "load":
        return importlib.import_module("nlhf_jax.api").load
    raise AttributeError(f"module 'nlhf_jax' has no attribute {name!r}")
