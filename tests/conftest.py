"""Sets JAX up for the whole suite, before anything starts it."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import jax
import pytest

from tests import browser, buckets

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
os.environ.setdefault("PJRT_NPROC", "32")  # threads to spare: see `commands._configure_jax`
if "XLA_FLAGS" not in os.environ and _xla_knows(_QUICK_COMPILATION):
    os.environ["XLA_FLAGS"] = _QUICK_COMPILATION

# What other runs left behind decides nothing, here and in programs that the tests start.
if "JAX_ENABLE_COMPILATION_CACHE" not in os.environ:
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    jax.config.update("jax_enable_compilation_cache", False)

# For the tests of meshes; every other test lives on the first one.
jax.config.update("jax_num_cpu_devices", 8)


def pytest_configure(config: pytest.Config) -> None:
    # Or else xdist would begin with the files that have most tests, and end with the slow ones.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a slow test come first, so that no process is left with one when all is done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def storage_server(tmp_path_factory) -> Iterator[buckets.Storage]:
    """A Google Cloud Storage of our own, for the processes that get its `environment`."""
    with buckets.storage(tmp_path_factory.mktemp("storage")) as server:
        yield server


@pytest.fixture
def bucket(storage_server, monkeypatch, request) -> buckets.Bucket:
    """A new bucket, which this process finds."""
    for name, value in storage_server.environment.items():
        monkeypatch.setenv(name, value)
    name = re.sub("[^a-z0-9]+", "-", request.node.name.lower())[:60].strip("-")
    return storage_server.make_bucket(name)


# Of a module: while Playwright runs, no other test of the process could start an asyncio loop.
@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as found:
        yield found


@pytest.fixture
def open_page(chromium) -> Iterator[browser.Pages]:
    """Opens a page from disk in headless Chromium; what goes wrong in it fails the test."""
    pages = browser.Pages(chromium)
    yield pages
    pages.close()
    assert pages.faults == []
