"""Nash learning from human feedback in JAX."""

__version__ = "0.2.0"
