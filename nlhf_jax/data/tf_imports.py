"""TensorFlow, TFDS and seqio, imported quietly and kept off the accelerators.

TensorFlow only moves data here. Its libraries write start-up notes to standard error that no user
of a JAX program can act on, some before any setting could stop them, and would take all memory of a
GPU.
"""

import contextlib
import os
import sys
import tempfile


@contextlib.contextmanager
def _standard_error_held_back():
    """Holds back standard error, of C++ too; shows it only if an exception leaves."""
    sys.stderr.flush()
    try:
        terminal = os.dup(2)
    except OSError:  # closed: nothing to hold back
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            held.seek(0)
            os.write(terminal, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with _standard_error_held_back():
    import seqio
    import tensorflow as tf
    import tensorflow_datasets as tfds
    import tensorflow_text as tf_text

    with contextlib.suppress(RuntimeError):  # already running, with devices that someone else chose
        tf.config.set_visible_devices([], "GPU")

__all__ = ["seqio", "tf", "tf_text", "tfds"]
