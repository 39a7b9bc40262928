"""Metrics, samples and reports to Weights & Biases or MLflow, for a run that asks for it.

Where to, and how, is for their own environment variables to say: WANDB_MODE=offline and WANDB_DIR,
MLFLOW_TRACKING_URI. Nothing is sent, and neither package imported, unless TRACKING names it.

All is sent by a thread of its own, so that a training waits for no server, and a failure ends
tracking, not the training. What was sent stands in `tracking.json` of the run's directory: whoever
continues there continues the tracked run, sends no step twice, and sends what has been written to
`metrics.jsonl` meanwhile without having been sent.
"""

import dataclasses
import importlib.util
import json
import math
import os
import queue
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from etils import epath

from nlhf_jax import metrics, processes
from nlhf_jax.errors import UserError, first_line, warn
from nlhf_jax.files import write_json

FILE_NAME = "tracking.json"
_PATIENCE = 60  # seconds that the end of a run waits for what is not sent yet
_AT_ONCE = 100  # parameters that MLflow takes in one call
_LONGEST = 500  # characters of a parameter in every store of MLflow


@dataclasses.dataclass(frozen=True)
class Tracking:
    """What a run asks for.

    Attributes:
      kind: "wandb" or "mlflow".
      project: of Weights & Biases, or the experiment of MLflow.
      config: the run's settings, by name.
    """

    kind: str
    project: str
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def requested(kind: str | None, project: str | None, config: Mapping[str, Any]) -> Tracking | None:
    """What TRACKING and TRACKING_PROJECT mean: None for nothing.

    Raises:
      UserError: it is neither kind, or its package is not installed, or there is no project.
    """
    if kind is None:
        return None
    if kind not in _STORES:
        wanted = ", ".join(map(repr, _STORES))
        raise UserError(f"TRACKING is {kind!r} but must be None or one of {wanted}")
    if not project:
        raise UserError(f"TRACKING_PROJECT is {project!r} but must name a project for {kind}")
    if importlib.util.find_spec(kind) is None:
        raise UserError(
            f"TRACKING is {kind!r}, which is not installed: pip install 'nlhf_jax[{kind}]'"
        )
    return Tracking(kind, project, config)


def open_writer(
    directory: str | os.PathLike,
    restored_step: int,
    again: str | None,
    tracking: Tracking | None,
) -> "Writer":
    """A `metrics.MetricWriter`, or one that writes to a tracked run too; arguments as of that."""
    # The tracker is first to look at the lines, some of which the writer takes back.
    tracker = None if tracking is None else Tracker(tracking, directory)
    writer = metrics.MetricWriter(directory, restored_step, again)
    return writer if tracker is None else _Both(writer, tracker)


class Writer(Protocol):
    """Of metrics: see `metrics.MetricWriter`."""

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class _Both:
    def __init__(self, *writers: Writer):
        self._writers = writers

    def write(self, step: int, split: str, metrics: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write(step, split, metrics)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


class Tracker:
    """A tracked run: a writer of metrics, tables and files. Of several processes the first sends.

    Args:
      tracking: what is asked for; its package is installed.
      directory: of the run, which has `tracking.json` if it continues.
    """

    def __init__(self, tracking: Tracking, directory: str | os.PathLike):
        self._tracking = tracking
        self._place = epath.Path(directory)
        self._to_do: queue.SimpleQueue[Callable[[_Store], None] | None] = queue.SimpleQueue()
        self._thread = None
        if not processes.is_first():
            return
        self._place.mkdir(parents=True, exist_ok=True)
        same = {"kind": tracking.kind, "project": tracking.project}
        record = read_record(self._place)
        if record is None or any(record[name] != value for name, value in same.items()):
            record = same | {"id": None, "rows": 0, "sent": {}}
        self._record = record
        self._sent_before: dict[str, int] = dict(record["sent"])
        self._thread = threading.Thread(target=self._send, name="tracking", daemon=True)
        self._thread.start()
        for row in metrics.rows(self._place / metrics.FILE_NAME):
            step, split = row.pop("step"), row.pop("split")
            known = {n: v for n, v in row.items() if v is None or isinstance(v, int | float)}
            self.write(step, split, {n: math.nan if v is None else v for n, v in known.items()})
            self._sent_before[split] = max(step, self._sent_before.get(split, -1))

    def write(
        self, step: int, split: str, metrics: Mapping[str, float], known_as: str | None = None
    ) -> None:
        """The metrics of a split at a step; not if an earlier attempt has sent them.

        Of that the split tells, or in its place `known_as`, for what may come out differently.
        """
        known = split if known_as is None else known_as
        if self._thread is None or step <= self._sent_before.get(known, -1):
            return
        values = {f"{split}/{name}": float(value) for name, value in metrics.items()}

        def send(store: _Store) -> None:
            # Noted before: a kill in between loses a line there, where it would double it.
            sent = self._record["sent"]
            sent[known] = max(step, sent.get(known, -1))
            self._note()
            store.scalars(step, values)

        self._to_do.put(send)

    def table(self, name: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of texts, in place of an earlier one of that name."""

        def send(store: _Store) -> None:
            self._note()
            store.table(name, header, rows)

        if self._thread is not None:
            self._to_do.put(send)

    def file(self, path: epath.Path) -> None:
        """A file under its own name, in place of an earlier one."""
        if self._thread is None:
            return
        content = path.read_bytes()

        def send(store: _Store) -> None:
            with tempfile.TemporaryDirectory() as place:  # the path may be in a bucket
                copy = os.path.join(place, path.name)
                with open(copy, "wb") as stream:
                    stream.write(content)
                store.file(copy)

        self._to_do.put(send)

    def close(self) -> None:
        """Waits for what is still to be sent, up to a minute."""
        if self._thread is None:
            return
        self._to_do.put(None)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            warn(f"{self._tracking.kind} has not taken all that was to be tracked: left behind")
        self._thread = None

    def _note(self) -> None:
        """That one more row is sent."""
        self._record["rows"] += 1
        write_json(self._place / FILE_NAME, self._record)

    def _send(self) -> None:
        """What the thread does: all that fails in it is tracking's own failure."""
        try:
            store = _STORES[self._tracking.kind](self._tracking, self._record, self._place.name)
            write_json(self._place / FILE_NAME, self._record)
            while (task := self._to_do.get()) is not None:
                task(store)
            store.close()
        except Exception as error:
            warn(
                f"nothing more is tracked by {self._tracking.kind}: {first_line(error)}; metrics go"
                f" on in {self._place / metrics.FILE_NAME}"
            )


def read_record(directory: epath.Path) -> dict[str, Any] | None:
    """What `tracking.json` says: where to, id, how many rows, and the last step of each split."""
    path = directory / FILE_NAME
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        texts = isinstance(record["kind"], str) and isinstance(record["project"], str)
        if texts and isinstance(record["id"], str | None):
            sent = {str(split): int(step) for split, step in record["sent"].items()}
            return record | {"rows": int(record["rows"]), "sent": sent}
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    warn(f"{path} is damaged: the run is tracked as a new one")
    return None


# --- where it goes -------------------------------------------------------------------------------


class _Store(Protocol):
    """Made of what is asked for, the record, which it gives its id, and the run's name."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def table(self, name: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None: ...

    def file(self, path: str) -> None: ...

    def close(self) -> None: ...


class _WeightsAndBiases:
    def __init__(self, tracking: Tracking, record: dict[str, Any], name: str):
        import wandb

        self._wandb, self._record = wandb, record
        record["id"] = record["id"] or uuid.uuid4().hex[:16]
        # Without a server an attempt's directory is named by the second in which it began, and a
        # second attempt in that is lost.
        time.sleep(min(max(record.get("began", 0.0) + 2 - time.time(), 0), 2))
        self._run = wandb.init(
            project=tracking.project,
            id=record["id"],
            name=name,
            resume="allow",
            reinit="create_new",  # beside a run that the caller may have
            config=dict(tracking.config),
            settings=wandb.Settings(console="off", silent=True),
        )
        record["began"] = time.time()  # not before: it may have taken them seconds to begin
        # Their own step counts rows: it may not go back or stay, and without a server no attempt
        # knows by itself how far the one before was.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values}, step=self._record["rows"])

    def table(self, name: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = self._wandb.Table(columns=list(header), data=[*map(list, rows)])
        self._run.log({name: table}, step=self._record["rows"])

    def file(self, path: str) -> None:
        name = os.path.basename(path)
        artifact = self._wandb.Artifact(
            f"{self._record['id']}-{name.partition('.')[0]}", type="report"
        )
        artifact.add_file(path)
        self._run.log_artifact(artifact)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, tracking: Tracking, record: dict[str, Any], name: str):
        import mlflow
        from mlflow import entities

        self._client, self._entities = mlflow.MlflowClient(), entities
        if record["id"] is not None:
            self.id = record["id"]
            self._client.update_run(self.id, status="RUNNING")
            return
        experiment = self._client.get_experiment_by_name(tracking.project)
        number = (
            self._client.create_experiment(tracking.project)
            if experiment is None
            else experiment.experiment_id
        )
        self.id = record["id"] = self._client.create_run(number, run_name=name).info.run_id
        params = [
            entities.Param(_allowed(key), str(value)[:_LONGEST])
            for key, value in tracking.config.items()
        ]
        for start in range(0, len(params), _AT_ONCE):
            self._client.log_batch(self.id, params=params[start : start + _AT_ONCE])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        rows = [self._entities.Metric(_allowed(key), v, now, step) for key, v in values.items()]
        self._client.log_batch(self.id, metrics=rows)

    def table(self, name: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
        self._client.log_dict(self.id, columns, f"{name}.json")

    def file(self, path: str) -> None:
        self._client.log_artifact(self.id, path)

    def close(self) -> None:
        self._client.set_terminated(self.id)


def _allowed(name: str) -> str:
    """A name with the characters that MLflow allows."""
    return re.sub(r"[^A-Za-z0-9_\-. :/]", "_", name)


_STORES: dict[str, Callable[[Tracking, dict[str, Any], str], _Store]] = {
    "wandb": _WeightsAndBiases,
    "mlflow": _MLflow,
}
