"""Replies that were paid for, on disk: what is asked again, by whichever run, costs nothing.

An SQLite file, so that a kill at any moment leaves whole replies and several runs may share it. It
has no credentials in it, and `sqlite3 FILE 'select * from replies'` shows it.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nlhf_jax.errors import UserError, first_line, warn
from nlhf_jax.evaluation.llm_prompt import Reply
from nlhf_jax.files import in_bucket

_SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
  question TEXT PRIMARY KEY,  -- hash of all that decides the answer
  asked TEXT NOT NULL,        -- whom: model and address
  text TEXT NOT NULL,
  refused INTEGER NOT NULL,
  label_log_probs TEXT,       -- JSON
  model TEXT NOT NULL,
  tokens_in INTEGER,
  tokens_out INTEGER
) WITHOUT ROWID
"""
_COLUMNS = ("question", "asked", *(field.name for field in dataclasses.fields(Reply)))
_BUSY = 60.0  # seconds that another run may take to write a reply


def key(question: Mapping[str, Any]) -> str:
    """A hash of a question, whose values are those of JSON: 64 hexadecimal digits."""
    text = json.dumps(question, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class PaidOnce:
    """Replies by the questions' keys.

    Args:
      path: of the file, which is made if it is not there; `~` is the user's home.

    Raises:
      UserError: here and in all methods, when the file cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike):
        if in_bucket(path):
            raise UserError(
                f"LLM_CACHE is {path} but must be on a local disk: a bucket has no locks"
            )
        self.path = Path(path).expanduser()
        self._without_locks = False
        with self._one_error():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Asking goes on in a thread of its own, but only ever in one.
            self._replies = sqlite3.connect(
                self.path, timeout=_BUSY, isolation_level=None, check_same_thread=False
            )
            self._replies.execute("PRAGMA journal_mode=WAL")  # readers and a writer at once
            self._replies.execute(_SCHEMA)
            self._locks = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT, 0o644)

    def close(self) -> None:
        self._replies.close()
        os.close(self._locks)

    def find(self, question: str) -> Reply | None:
        """The reply to the question with this key, if one was paid for."""
        columns = ", ".join(_COLUMNS[2:])
        with self._one_error():
            row = self._replies.execute(
                f"SELECT {columns} FROM replies WHERE question = ?", (question,)
            ).fetchone()
            if row is None:
                return None
            text, refused, log_probs, *rest = row
            return Reply(text, bool(refused), log_probs and json.loads(log_probs), *rest)

    def keep(self, question: str, asked: str, reply: Reply) -> None:
        """Writes a reply; it is on disk when this returns."""
        log_probs = reply.label_log_probs
        values = dataclasses.asdict(reply) | {
            "label_log_probs": None if log_probs is None else json.dumps(log_probs)
        }
        with self._one_error():
            self._replies.execute(
                f"INSERT OR IGNORE INTO replies ({', '.join(_COLUMNS)})"
                f" VALUES ({', '.join('?' * len(_COLUMNS))})",
                (question, asked, *values.values()),
            )

    def paid(self, asked: str) -> tuple[int, int, int]:
        """Of all runs: how many replies of `asked` there are, and their tokens in and out."""
        with self._one_error():
            replies, tokens_in, tokens_out = self._replies.execute(
                "SELECT count(*), total(tokens_in), total(tokens_out) FROM replies WHERE asked = ?",
                (asked,),
            ).fetchone()
        return replies, int(tokens_in), int(tokens_out)

    # A question that is being asked holds the lock of one byte of a file beside the replies. It
    # goes with its process, whatever ends that.

    def claim(self, question: str) -> bool:
        """Whether the question is ours to ask; False while another run asks it."""
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _byte(question))
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:  # Some network file systems have no locks.
            if not self._without_locks:
                warn(
                    f"{self.path}.lock cannot be locked ({error.strerror}), so what two runs ask at"
                    " the same moment is paid twice"
                )
            self._without_locks = True
        return True

    def release(self, question: str) -> None:
        """Ends `claim`."""
        with contextlib.suppress(OSError):
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, _byte(question))

    @contextlib.contextmanager
    def _one_error(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise UserError(f"LLM_CACHE {self.path} cannot be read or written: {reason}") from error


def _byte(question: str) -> int:
    return int(question[:15], 16)  # below 2^60, as a file's offsets have to be
