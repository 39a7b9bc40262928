"""Where each training of a chain began, as the report calls it."""

import json

from etils import epath

from nlhf_jax.report import contents
from nlhf_jax.report.writing import write_report


def test_a_training_says_where_it_began(tmp_path, monkeypatch):
    """By the chain's own name for a checkpoint of the chain; nothing is said where none did."""
    for name, source in (
        ("sft", None),
        ("reward", f"{tmp_path}/sft#best"),
        ("policy", "gs://b/t5"),
    ):
        stage = tmp_path / name
        stage.mkdir()
        line = json.dumps({"step": 3, "split": "train", "loss": 1.0})
        (stage / "metrics.jsonl").write_text(line + "\n")
        path = (
            None
            if source is None
            else {
                "source": source,
                "path": source.split("#")[0] + ("/checkpoints/20" if "sft" in source else ""),
                "identity": None,
            }
        )
        opened = {} if path is None else {"initial_checkpoint": path}
        (stage / "run.json").write_text(json.dumps({"checkpoints": opened, "changes": []}))

    def stages():
        read = contents.read_report(epath.Path(tmp_path)).stages
        return {stage.name: stage.began_at for stage in read}

    assert stages() == {"sft": None, "reward": "sft#best (step 20)", "policy": "gs://b/t5"}
    monkeypatch.chdir(tmp_path.parent)  # a chain that was called by a relative path
    record = tmp_path / "reward" / "run.json"
    record.write_text(record.read_text().replace(str(tmp_path), tmp_path.name))
    relative = contents.read_report(epath.Path(tmp_path.name)).stages
    assert "sft#best (step 20)" in [stage.began_at for stage in relative]
    record.write_text(record.read_text().replace(tmp_path.name, str(tmp_path)))
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Began at" in page and "sft#best (step 20)" in page and "random parameters" in page
    (tmp_path / "reward" / "run.json").write_text("[1]")
    assert stages()["reward"] is None
