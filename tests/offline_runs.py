"""What Weights & Biases and MLflow have stored without a server, read back."""

import collections
import contextlib
import json
import struct
import time
from pathlib import Path

from google.protobuf.message import DecodeError

_BLOCK = 32768


def wandb_rows(place: Path, run_id: str) -> tuple[list[dict], dict]:
    """All rows of a run's history, of the oldest attempt first, and the settings of that.

    A run's file is a LevelDB log of their own protocol buffers, which its Go program wrote.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    rows, config = [], {}
    for path in sorted(place.glob(f"wandb/offline-run-*/run-{run_id}.wandb")):
        for record in _whole(path, Record):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                items = record.history.item
                rows.append(
                    {
                        item.key or "/".join(item.nested_key): json.loads(item.value_json)
                        for item in items
                    }
                )
            if kind == "run":
                new = {item.key: json.loads(item.value_json) for item in record.run.config.update}
                config = config or new
    return rows, config


def _whole(path: Path, message: type) -> list:
    """The records of an attempt that has ended: on a busy machine its program writes on for a while
    after the run was finished, and its last record is `exit`."""
    found: list = []
    for _ in range(300):
        with contextlib.suppress(DecodeError, struct.error):  # the last one is cut
            found = [message.FromString(content) for content in _records(path.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in found):
            break
        time.sleep(0.1)
    return found


def _records(content: bytes):
    """The records of a LevelDB log, after the seven bytes that say that it is one of theirs."""
    place, parts = 7, b""
    while place + 7 <= len(content):
        if _BLOCK - place % _BLOCK < 7:
            place += _BLOCK - place % _BLOCK
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def mlflow_metrics(run_id: str) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each metric of a run, as its own client gives them."""
    import mlflow

    client = mlflow.MlflowClient()
    found = collections.defaultdict(list)
    for name in client.get_run(run_id).data.metrics:
        for metric in client.get_metric_history(run_id, name):
            found[name].append((metric.step, metric.value))
    return dict(found)
