from pathlib import Path

import pytest

from nlhf_jax.checkpoints.interop import huggingface
from tests import tiny
from tests.checkpoints.interop import tiny_checkpoints


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """A whole checkpoint of each format, Hugging Face's in three files."""
    network = tiny_checkpoints.model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface, "_SHARD_BYTES", 20_000)
        return {
            to: tiny_checkpoints.write(
                tmp_path_factory.mktemp(to), to, network, tiny.params(network, 1)
            )
            for to in ("t5x", "t5x_orbax", "huggingface")
        }
