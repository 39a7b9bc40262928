"""The one exception that means: the user can put this right."""

import contextlib
import sys
from collections.abc import Iterator


class UserError(Exception):
    """Bad input: a file, a setting or a checkpoint that cannot be used as it is.

    The message is one sentence that names the file and line, or the setting, says what was met and
    what was wanted. The command line prints it without a traceback and exits with code 2.
    """


def warn(sentence: str) -> None:
    """Says on stderr what goes on as it is but may not be what the user wants."""
    print(f"nlhf: warning: {sentence}", file=sys.stderr, flush=True)


def first_line(error: Exception) -> str:
    """What an error says, short enough to stand in another one's sentence."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 200 else line[:200] + "..."


def printable(text: str) -> str:
    """Text for a terminal: what it does not print, or obeys, as escapes; lines stay lines."""
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


@contextlib.contextmanager
def unreadable_is_one_error(path: str, what: str) -> Iterator[None]:
    """Inside, what storage raises about `path`, such as a bucket out of reach, is a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # Every bucket's library has exceptions of its own.
        # ValueError: a name that no file can have, with a NUL byte in it.
        nameless = isinstance(error, ValueError) and "\0" in str(path)
        if not (isinstance(error, OSError) or nameless or "://" in str(path)):
            raise
        reason = getattr(error, "strerror", None) or f"{error}".strip() or type(error).__name__
        raise UserError(f"{path}: cannot read {what}: {reason.splitlines()[0]}") from error
