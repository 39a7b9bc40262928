"""Memory in pages of 2 MiB, for the arrays of CPUs.

XLA allocates the arrays of a step and frees them, and the C library hands them back to Linux. The
next step finds other memory there, and each page of it costs a fault and is filled with zeros: with
pages of 4 KiB a tenth of a step's time. glibc (2.35 and later) asks Linux for huge pages if it is
told so when the process starts (`GLIBC_TUNABLES`, glibc manual, "Memory Allocation Tunables").
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_TUNABLES, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_MARK = "NLHF_RESTARTED"
# "always [madvise] never", for example: the one in brackets holds.
_POLICY = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def ask() -> None:
    """Starts this process anew with the setting, unless it has it or nothing would heed it.

    To be called by a program before it does anything else. The process keeps its number, arguments,
    files and environment. What the user says of huge pages in GLIBC_TUNABLES holds:
    `GLIBC_TUNABLES=glibc.malloc.hugetlb=0` turns this off.
    """
    environment = with_setting(os.environ)
    if environment is None or not (heeded() and sys.executable):
        return
    try:
        os.execve(sys.executable, sys.orig_argv, environment)
    except OSError:  # It would have been faster; it also works.
        return


def with_setting(environment: Mapping[str, str]) -> dict[str, str] | None:
    """An environment that has the setting; None if something was said of it, or tried before."""
    tunables = environment.get(_TUNABLES, "")
    # Linux takes the tunables away from a program with privileges: without a mark it would start
    # anew for ever.
    if _TUNABLE in tunables or _MARK in environment:
        return None
    asked = ":".join(filter(None, [tunables, f"{_TUNABLE}=1"]))
    return {**environment, _TUNABLES: asked, _MARK: "1"}


def heeded() -> bool:
    """Whether glibc knows the setting, and Linux gives huge pages to those alone who ask."""
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        policy = _POLICY.read_text(encoding="ascii")
    except (AttributeError, OSError, ValueError):  # another system, or another C library
        return False
    known = tuple(map(int, version.split(".")[:2])) >= (2, 35)
    return name == "glibc" and known and "[madvise]" in policy
