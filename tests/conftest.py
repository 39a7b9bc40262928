"""Sets JAX up for the whole suite, before anything starts it."""

import os
import subprocess
import sys

import jax

# The suite compiles many programs and runs each a few times on tiny arrays. With these flags XLA
# compiles them about four times faster; they run at half the speed.
_QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"


def _xla_knows(flags: str) -> bool:
    """XLA ends the process at a flag it does not know, and they come and go with its versions."""
    parse = [sys.executable, "-c", "from jaxlib import xla_client; xla_client.CompileOptions()"]
    environment = os.environ | {"XLA_FLAGS": flags}
    return not subprocess.run(parse, env=environment, capture_output=True, check=False).returncode


# Programs that the tests start inherit these, but not the number of devices.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("PJRT_NPROC", "32")  # threads to spare: see `main._configure_jax`
if "XLA_FLAGS" not in os.environ and _xla_knows(_QUICK_COMPILATION):
    os.environ["XLA_FLAGS"] = _QUICK_COMPILATION

# For the tests of meshes; every other test lives on the first one.
jax.config.update("jax_num_cpu_devices", 8)
