"""A command starts anew with huge pages, once, as the same process with the same arguments."""

import os
import subprocess
import sys

import pytest

from nlhf_jax import huge_pages

_TOLD = "GLIBC_TUNABLES"
needs_huge_pages = pytest.mark.skipif(
    not huge_pages.heeded(), reason="Linux gives no huge pages to those who ask, or all have them"
)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=0", "glibc.malloc.check=0:glibc.malloc.hugetlb=1"),
    ],
)
def test_the_setting_joins_what_the_user_said(before, after):
    environment = {"HOME": "/root"} | ({} if before is None else {_TOLD: before})
    found = huge_pages.with_setting(environment)
    assert found is not None and found[_TOLD] == after and found["HOME"] == "/root"
    assert huge_pages.with_setting(found) is None


def test_what_the_user_said_of_huge_pages_holds():
    assert huge_pages.with_setting({_TOLD: "glibc.malloc.hugetlb=0"}) is None


def test_a_setting_that_is_taken_away_is_not_asked_for_again():
    found = huge_pages.with_setting({})
    assert found is not None
    del found[_TOLD]
    assert huge_pages.with_setting(found) is None


def _run(*arguments: str, **more: str) -> str:
    """What a program prints that is started without the setting, unless `more` has it."""
    environment = {name: value for name, value in os.environ.items() if name != _TOLD}
    environment.pop("NLHF_RESTARTED", None)
    found = subprocess.run(
        [sys.executable, *arguments],
        env=environment | more,
        input="what is given to the program",
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip()


_PROGRAM = """\
import os, sys
print(os.getpid(), flush=True)
from nlhf_jax import huge_pages
huge_pages.ask()
told = os.environ["GLIBC_TUNABLES"]
print(os.getpid(), told, sys.argv[1:], sys.flags.utf8_mode, sys.stdin.read())
"""


@needs_huge_pages
def test_the_process_is_the_same_one():
    first, *rest = _run("-X", "utf8", "-c", _PROGRAM, "--a=b c", "").splitlines()
    told = f"{first} glibc.malloc.hugetlb=1 ['--a=b c', ''] 1 what is given to the program"
    assert rest == [first, told]


_FAULTS = """\
import resource
from nlhf_jax import huge_pages
huge_pages.ask()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
b"x" * 2**25
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@needs_huge_pages
def test_what_is_allocated_lies_in_huge_pages():
    """32 MiB are 8,192 pages of 4 KiB. Where memory is in pieces, Linux may have no huge ones."""
    assert int(_run("-c", _FAULTS, GLIBC_TUNABLES="glibc.malloc.hugetlb=0")) > 8000
    assert any(int(_run("-c", _FAULTS)) < 2000 for _ in range(3))


@needs_huge_pages
def test_nlhf_asks_for_them_and_a_program_that_calls_main_does_not():
    at_exit = "import atexit, os; atexit.register(lambda: print(os.environ.get('GLIBC_TUNABLES')))"
    for call, told in (("command()", "glibc.malloc.hugetlb=1"), ("main(['--help'])", "None")):
        program = f"{at_exit}; from nlhf_jax import main; main.{call}"
        assert _run("-c", program, "--help").splitlines()[-1] == told
