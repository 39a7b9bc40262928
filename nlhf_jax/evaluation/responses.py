"""What players wrote, in `DIRECTORY/responses/PLAYER.jsonl`: sampled once, read by every judge.

A line a prompt, as the player writes them: `prompt`, `completion`, `pieces` (what each token reads
as), `log_probs` and `reference_log_probs` (of each token, in nats). `PLAYER.json` beside it says
how they were sampled; where that is another way now, they are sampled again.
"""

import dataclasses
import json
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from nlhf_jax import processes
from nlhf_jax.errors import UserError, unreadable_is_one_error
from nlhf_jax.files import open_to_append, write_json, write_whole

DIRECTORY = "responses"
SUFFIX = ".jsonl"


@dataclasses.dataclass(frozen=True)
class Response:
    """One text, and how likely its writer and the reference policy were to write it.

    Attributes:
      text: what was written.
      pieces: what each of the T tokens reads as, EOS the last; empty if not known.
      log_probs: of each token under the distribution that was sampled, in nats; empty if not known.
      reference_log_probs: of each token under the reference policy at temperature 1.
    """

    text: str
    pieces: Sequence[str] = ()
    log_probs: Sequence[float] = ()
    reference_log_probs: Sequence[float] = ()

    @property
    def ratios(self) -> list[float]:
        """log(pi / mu) of each token, in nats."""
        pairs = zip(self.log_probs, self.reference_log_probs, strict=True)
        return [own - reference for own, reference in pairs]

    def to_line(self, prompt: str) -> dict[str, Any]:
        numbers = {
            "pieces": list(self.pieces),
            "log_probs": list(self.log_probs),
            "reference_log_probs": list(self.reference_log_probs),
        }
        known = {name: values for name, values in numbers.items() if values}
        return {"prompt": prompt, "completion": self.text, **known}

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> "Response":
        """Raises KeyError or TypeError if it is none."""
        if not isinstance(line["completion"], str):
            raise TypeError("its completion is no text")
        names = ("pieces", "log_probs", "reference_log_probs")
        return cls(line["completion"], *(tuple(line.get(name, ())) for name in names))


def file_name(name: str) -> str:
    """A player's or a judge's name as that of a file, whatever is in it."""
    return urllib.parse.quote(name, safe=" +@=()") or "%"


class Writing:
    """One player's responses while they are written, from where an earlier run has come to.

    All processes of a run make one; the first writes.

    Args:
      directory: the tournament's.
      player: its name.
      how: what decides the responses, a value of JSON.
      prompts: those that are answered, in order.
      at_once: prompts that are answered together: of what a kill cut short, whole ones are kept.
    """

    def __init__(
        self,
        directory: epath.Path,
        player: str,
        how: Mapping[str, Any],
        prompts: Sequence[str],
        at_once: int,
    ):
        place = epath.Path(directory) / DIRECTORY
        self._path = place / (file_name(player) + SUFFIX)
        self._prompts = prompts
        about = place / (file_name(player) + ".json")
        kept = processes.from_first(lambda: self._kept(about, dict(how), at_once))
        self.responses = [Response.from_line(line) for line in kept]

    def _kept(self, about: epath.Path, how: dict[str, Any], at_once: int) -> list[dict[str, Any]]:
        found = _lines(self._path) if _read_how(about) == how else []
        whole = 0
        for line, prompt in zip(found, self._prompts, strict=False):
            if line.get("prompt") != prompt:
                break
            whole += 1
        if whole < len(self._prompts):
            whole -= whole % at_once
        if whole == 0:
            self._path.unlink(missing_ok=True)  # before `about` says that it is of this kind
            write_json(about, how)
        elif whole < len(found) or not self._path.read_bytes().endswith(b"\n"):
            write_whole(self._path, "".join(map(_as_line, found[:whole])))
        return found[:whole]

    @property
    def complete(self) -> bool:
        return len(self.responses) == len(self._prompts)

    def add(self, responses: Sequence[Response]) -> None:
        """Writes those to the next prompts; they are on disk, or in the bucket, when it returns."""
        first = len(self.responses)
        prompts = self._prompts[first : first + len(responses)]
        lines = [one.to_line(prompt) for one, prompt in zip(responses, prompts, strict=True)]
        with open_to_append(self._path) as file:
            file.write("".join(map(_as_line, lines)).encode())
            file.flush()
        self.responses += responses


def read_file(path: str, prompts: Sequence[str]) -> list[Response]:
    """The responses of a file, ours or from elsewhere, to these prompts: the first to each.

    Raises:
      UserError: it cannot be read, a line of it is none, or a prompt has no response there.
    """
    with unreadable_is_one_error(path, "the responses"):
        content = epath.Path(path).read_bytes()
    found: dict[str, Response] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found.setdefault(row["prompt"], Response.from_line(row))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"{path}, line {number} is no JSON object with the texts 'prompt' and 'completion'"
            ) from None
    missing = [prompt for prompt in prompts if prompt not in found]
    if missing:
        raise UserError(
            f"{path} has no response to {len(missing)} of the {len(prompts)} prompts, the first of "
            f"which begins {missing[0][:60]!r}"
        )
    return [found[prompt] for prompt in prompts]


def write_all(
    directory: epath.Path,
    player: str,
    prompts: Sequence[str],
    written: Sequence[Response],
    references: Sequence[Sequence[str]] | None = None,
) -> None:
    """Keeps the responses of a player who needs no sampling, such as a file's or a person's.

    Args:
      directory: the tournament's.
      player: its name.
      prompts, written: N of each.
      references: of each prompt, all of its references, of which the player handed in one.
    """
    lines = [one.to_line(prompt) for prompt, one in zip(prompts, written, strict=True)]
    if references is not None:
        pairs = zip(lines, references, strict=True)
        lines = [line | {"references": list(texts)} for line, texts in pairs]
    path = epath.Path(directory) / DIRECTORY / (file_name(player) + SUFFIX)
    write_whole(path, "".join(map(_as_line, lines)))


def read_references(directory: epath.Path) -> list[list[str]] | None:
    """Each prompt's references, as `write_all` kept them with the player `reference`."""
    lines = _lines(epath.Path(directory) / DIRECTORY / f"reference{SUFFIX}")
    found = [line.get("references") for line in lines]
    if not all(
        isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in found
    ):
        return None
    return found  # type: ignore[return-value]


def read_player(directory: epath.Path, player: str) -> list[tuple[str, Response]] | None:
    """Prompts and a player's responses to them, as kept in a tournament's directory, if they are.

    What is damaged is left out: they can be sampled again.
    """
    path = epath.Path(directory) / DIRECTORY / (file_name(player) + SUFFIX)
    if not path.exists():
        return None
    return [(line["prompt"], Response.from_line(line)) for line in _lines(path)]


def _as_line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _read_how(path: epath.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _lines(path: epath.Path) -> list[dict[str, Any]]:
    """The whole lines from the first one on."""
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().split(b"\n")[:-1]:
        try:
            row = json.loads(line)
            Response.from_line(row)
        except (ValueError, KeyError, TypeError, RecursionError):
            break
        if not isinstance(row.get("prompt"), str):
            break
        found.append(row)
    return found
