"""TFDS's own test of a builder, on small files in the published format.

It also checks that files are opened as buckets need it, and that no example is in two splits.
"""

import tempfile
from pathlib import Path

import pytest

from nlhf_jax.data.tf_imports import tfds
from nlhf_jax.data.tldr import builder as tldr
from tests.data import tldr_rows

_FILES = tempfile.TemporaryDirectory()


@pytest.fixture(scope="module", autouse=True)
def files():
    tldr_rows.write_votes(tldr_rows.write_posts(Path(_FILES.name)))
    yield
    _FILES.cleanup()


class _TldrTestCase(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = tldr.Tldr
    EXAMPLE_DIR = _FILES.name
    SKIP_CHECKSUMS = True  # our sums are beside the files, see test_tldr.py

    def _make_builder(self, config=None):
        config = config or self.BUILDER_CONFIG_NAMES_TO_TEST[0]
        return tldr.Tldr(data_dir=self.tmp_dir, config=config, files_dir=_FILES.name)


class SftTest(_TldrTestCase):
    BUILDER_CONFIG_NAMES_TO_TEST = ["sft"]
    SPLITS = {"train": 6, "validation": 3, "test": 2}


class PreferencesTest(_TldrTestCase):
    BUILDER_CONFIG_NAMES_TO_TEST = ["preferences"]
    SPLITS = {"train": 23, "validation": 3, "test": 6}


del _TldrTestCase  # so that pytest takes only those with a config
