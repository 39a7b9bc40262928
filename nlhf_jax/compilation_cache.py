"""Compiled programs stay on disk, so that the same one is not compiled twice.

JAX's persistent compilation cache, with a directory of its own where none was chosen. Stages of a
chain, seeds of a study, and runs that continue share programs: a step that takes eight seconds to
compile is there in three. `JAX_COMPILATION_CACHE_DIR` chooses another directory (one in a bucket,
for the processes of a pod), `JAX_ENABLE_COMPILATION_CACHE=false` keeps nothing. The directory may
be deleted at any time.
"""

import hashlib
import os
import platform
from pathlib import Path

import jax


def keep_programs() -> None:
    """Before the first compilation. Changes nothing where a directory was chosen, or no cache."""
    settings = jax.config.values
    if settings["jax_compilation_cache_dir"] is not None:
        return
    if not settings["jax_enable_compilation_cache"]:
        return
    directory = _caches() / "nlhf_jax" / f"programs-{_machine()}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:  # No home, or a disk that is read-only: compile anew.
        return
    if os.access(directory, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(directory))


def _caches() -> Path:
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    return Path(chosen) if os.path.isabs(chosen) else Path(os.path.expanduser("~")) / ".cache"


def _machine() -> str:
    """Of a CPU's kind: homes are shared by machines, and programs for one CPU may end another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = [platform.processor()]
    told = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return hashlib.sha256("\n".join([platform.machine(), *told]).encode()).hexdigest()[:12]
