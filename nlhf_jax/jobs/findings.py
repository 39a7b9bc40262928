"""The `games` job of a chain: computes findings and keeps them for the report."""

from collections.abc import Callable, Sequence

import jax
from etils import epath

from nlhf_jax import processes
from nlhf_jax.files import absolute
from nlhf_jax.metrics import Progress
from nlhf_jax.report import findings as files
from nlhf_jax.report.findings import Finding


def games(workdir: str, findings: Sequence[Callable[..., Finding]]) -> None:
    """Computes findings in float64; writes `workdir/findings.json` and `workdir/figures/`.

    Args:
      workdir: the stage's directory.
      findings: functions of `run`, the name that figures carry, such as those of
        `nlhf_jax.games.solver_findings`; gin sets their other arguments.
    """
    if not processes.is_first():  # They are small: it computes them on a device of its own.
        return
    directory = epath.Path(workdir)
    progress = Progress(directory.name, len(findings))
    found = []
    for number, compute in enumerate(findings, start=1):
        progress.status(f"finding {number} of {len(findings)}")
        with jax.enable_x64(True):
            found.append(compute(run=absolute(directory).parent.name))
        progress.message(f"found: {found[-1].title}")
    files.save(directory, found)
    progress.close()
