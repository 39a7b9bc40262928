"""`python -m tests.drill`: see the package."""

import argparse
import sys
from pathlib import Path

from tests import conftest  # noqa: F401  XLA's flags for quick compilation
from tests.drill import table
from tests.drill.drill import RESULTS, Drill
from tests.drill.jobs import JOBS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drill", description=__doc__)
    add = parser.add_argument
    add("--kills", type=int, default=300, help="at least so many, over all jobs (300)")
    add("--damages", type=int, default=40, help="damaged files and directories (40)")
    add("--disks", type=int, default=None, metavar="N", help="only the first N faults of disks")
    add("--seed", type=int, default=0, help="(0)")
    add("--jobs", nargs="*", choices=JOBS, default=list(JOBS), help="to kill (all)")
    add("--workers", type=int, default=1, help="runs at a time (1)")
    add("--workdir", type=Path, required=True, help="the same directory continues a drill")
    options = parser.parse_args()
    drill = Drill(options.workdir, options.seed, options.jobs, options.workers)
    drill.kill(options.kills, options.jobs)
    drill.damage(options.damages)
    drill.disks(options.disks)
    rows = drill.rows()
    print(table.markdown(rows))
    print(f"all results: {drill.place.directory / RESULTS}")
    return int(any(row["why"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
