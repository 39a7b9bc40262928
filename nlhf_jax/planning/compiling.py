"""The real step, compiled for chips that are not here, in a process of its own.

The compiler of libtpu can end its process, or not end at all: what it says comes back as a
`Compiled`, whatever happens. What was compiled is remembered, by a hash of what it depends on.
"""

import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from nlhf_jax import configuration
from nlhf_jax.errors import UserError
from nlhf_jax.planning import runs
from nlhf_jax.planning.chips import HERE, Topology

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# A quick compilation's peak is within 3 % of the real one (v5e): nearer to the limit than this, the
# step is compiled with all the compiler's care.
_CLOSE = 0.06
_SOURCES = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Request:
    """What to compile: a gin file's step, with the sizes of its networks, for a topology.

    If `careful` as the run itself will: a program that is compiled quickly takes about as much
    memory, but is slower and has other collectives.
    """

    gin_files: tuple[str, ...]
    overrides: tuple[str, ...]
    search_paths: tuple[str, ...]
    policy: str | None
    rater: str | None
    topology: str
    careful: bool = False

    def run(self) -> runs.Run:
        return runs.read(self.gin_files, self.overrides, self.search_paths, self.policy, self.rater)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What came of compiling.

    Attributes:
      verdict: "fits", "does not fit", "compiler failed" or "not compiled".
      reason: of the last two; empty otherwise.
      peak: bytes of a chip's memory at the most; None where the compiler does not say.
      seconds: how long it took.
      collectives, sent: for each token in the decode loop, how many and bytes that a chip sends;
        None where there is no such loop.
      remembered: whether this comes from an earlier call.
    """

    verdict: str
    reason: str = ""
    peak: float | None = None
    seconds: float = 0.0
    collectives: float | None = None
    sent: float | None = None
    remembered: bool = False


def compiled(
    request: Request,
    run: runs.Run,
    topology: Topology,
    timeout: float,
    program: str | None = None,
) -> Compiled:
    """Compiles a run's step for `topology`, or remembers it.

    Args:
      request: what to compile.
      run: what it says.
      topology: what it is for.
      timeout: seconds, after which the compiler has failed.
      program: a file for the compiled program's text; then it is compiled in any case.
    """
    if not topology.chip.is_tpu and topology.name != HERE:
        return Compiled(
            "not compiled", "a program for GPUs is compiled where there is one: --topology=here"
        )
    if topology.chip.is_tpu and importlib.util.find_spec("libtpu") is None:
        return Compiled("not compiled", "libtpu is not installed: pip install 'nlhf_jax[tpu]'")
    remembered = _cache_file(run, request)
    if program is None and remembered.exists():
        return dataclasses.replace(_read(remembered), remembered=True)
    limit = topology.chip.memory
    found = _compile(request, topology, timeout, program)
    if found.peak is not None and abs(found.peak - limit) < _CLOSE * limit and not request.careful:
        careful = dataclasses.replace(request, careful=True)
        found = _compile(careful, topology, timeout, program)
    if found.verdict in ("fits", "does not fit"):
        remembered.parent.mkdir(parents=True, exist_ok=True)
        partial = remembered.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(dataclasses.asdict(found)))
        partial.replace(remembered)
    return found


def _compile(request: Request, topology: Topology, timeout: float, program: str | None) -> Compiled:
    environment = dict(os.environ)
    if topology.chip.is_tpu:
        # No TPU is asked for, and another process may have libtpu loaded.
        environment |= {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
    else:
        environment["JAX_NUM_CPU_DEVICES"] = str(topology.chips)
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(_SOURCES.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    asked = dataclasses.asdict(request) | {"program": program, "parent": os.getpid()}
    started = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "nlhf_jax.planning.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        out, err = child.communicate(json.dumps(asked), timeout=timeout)
    except subprocess.TimeoutExpired:
        return Compiled("compiler failed", f"it took more than {timeout:.0f} s")
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
    seconds = time.monotonic() - started
    return dataclasses.replace(_understood(child.returncode, out, err, topology), seconds=seconds)


def _understood(code: int, out: str, err: str, topology: Topology) -> Compiled:
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if not lines:
        last = [line for line in err.splitlines() if line.strip()]
        reason = f"signal {-code}" if code < 0 else (last[-1].strip()[:200] if last else "")
        return Compiled("compiler failed", reason or f"exit code {code}")
    said = json.loads(lines[-1])
    if "user_error" in said:
        raise UserError(said["user_error"])
    if "error" in said:
        return _refused(said["error"])
    peak = said["peak"]
    if peak is None:
        return Compiled("compiler failed", "it does not say how much memory the step takes")
    verdict = "fits" if peak <= topology.chip.memory else "does not fit"
    return Compiled(verdict, "", peak, 0.0, said["collectives"], said["sent"])


def _refused(message: str) -> Compiled:
    """What a compiler's error comes to: out of memory, or anything else."""
    if "RESOURCE_EXHAUSTED" in message or "out of memory" in message.lower():
        used = re.search(r"Used ([\d.]+)([KMGT]?) of", message)
        peak = float(used[1]) * _UNITS[used[2]] if used else None
        return Compiled("does not fit", peak=peak)
    return Compiled("compiler failed", message.strip().splitlines()[0][:200])


# --- memory of what was compiled -----------------------------------------------------------------


def _cache_file(run: runs.Run, request: Request) -> Path:
    """Where the answer is, by a hash of run, chips, compiler and our sources."""
    runs.parse(request.gin_files, request.overrides, request.search_paths)
    matters: dict[str, Any] = {
        "run": dataclasses.asdict(run),
        "configuration": configuration.text(),
        "topology": (request.topology, request.careful),
        "sources": _sources(),
        "libraries": {name: _version(name) for name in ("jax", "jaxlib", "libtpu", "optax")},
    }
    digest = hashlib.sha256(json.dumps(matters, sort_keys=True, default=str).encode()).hexdigest()
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "nlhf_jax" / "plan" / f"{digest[:32]}.json"


def _sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(_SOURCES.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> Compiled:
    try:
        return Compiled(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: delete it") from error


def with_setting(request: Request, *settings: str) -> Request:
    """The same with more overrides, "NAME=value"; the last one of a name counts."""
    names = [setting.partition("=")[0] for setting in settings]
    kept = [o for o in request.overrides if o.partition("=")[0] not in names]
    return dataclasses.replace(request, overrides=(*kept, *settings))
