"""What our TFDS builders share: they are quiet, and no server is asked about them."""

import contextlib
import io
from collections.abc import Iterator

from nlhf_jax import processes
from nlhf_jax.data.tf_imports import seqio, tfds
from nlhf_jax.errors import UserError, first_line


class LocalInfo(tfds.core.DatasetInfo):
    """For a dataset of which nothing is on TFDS's servers."""

    def initialize_from_bucket(self) -> None:
        """Asks nobody."""


def data_directory(given: str | None) -> str | None:
    """Where TFDS files go: `given`, or seqio's override, or None for TFDS's own default.

    The override is that of `seqio.set_tfds_data_dir_override`, as it is now; the default the
    environment's TFDS_DATA_DIR, or ~/tensorflow_datasets.
    """
    return given if given is not None else seqio.LazyTfdsLoader("local:1.0.0").data_dir


@contextlib.contextmanager
def damage_is_one_error(where: str) -> Iterator[None]:
    """Inside, what TFDS and TensorFlow raise about files that were written once is a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # assertions of TFDS, errors of protocol buffers, of records, ...
        raise UserError(
            f"{where} is damaged or was written by something else ({first_line(error)}): delete "
            "it, and it is written again"
        ) from error


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Writes the dataset unless it is there. It is there in whole or not at all.

    Of several processes of one run the first does; where others do not see its files, they follow.

    Raises UserError if it cannot be written.
    """
    tfds.disable_progress_bar()
    try:
        with (
            processes.first_before_others(f"prepare {builder.name}"),
            contextlib.redirect_stdout(io.StringIO()),  # "Downloading and preparing ...": no
        ):
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
    except OSError as error:
        place, reason = builder.data_dir_root, error.strerror or error
        raise UserError(f"{place}: cannot write {builder.name} there: {reason}") from None
