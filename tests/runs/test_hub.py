"""A plan whose model is one of the hub: from its cache, or fetched into it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import validate
from safetensors.torch import save_file

from sprunec.checkpoint.provenance import read_origin
from sprunec.plan.schema import load_schema
from tests.helpers.hub import COMMIT, NAME, cache_model, serve_model
from tests.helpers.small_plans import EMIT, MODEL, plan, read_report, save_weights, write

HALF = {"pass": "score-mask", "criterion": "magnitude", "unit": "head", "target": {"num_heads": 4}}
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model's files, and some that nobody needs."""
    directory = tmp_path / "model"
    directory.mkdir()
    state = torch.load(save_weights(tmp_path / "dense.pt"), weights_only=True)
    save_file(state, directory / "model.safetensors")
    torch.save(state, directory / "pytorch_model.bin")
    (directory / "config.json").write_text(json.dumps(MODEL))
    (directory / "model.onnx").write_bytes(b"another format")
    (directory / "README.md").write_text("about it")
    return directory


def run(folder: Path, *arguments: str, endpoint: str = NOWHERE, **of_model: Any) -> subprocess.CompletedProcess[str]:
    path = write(folder, plan(HALF, EMIT, model={"path": NAME} | of_model))
    command = [sys.executable, "-m", "sprunec", *arguments, str(path)]
    command += ["--out", str(folder / "out")] if arguments[0] == "run" else []
    about = {"HF_HOME": str(folder / "cached"), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
    about |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(command, env=inherited | about, capture_output=True, text=True, check=False, cwd=folder)


def test_run_fetches_what_it_needs_once_and_notes_the_commit(model: Path, tmp_path: Path) -> None:
    with serve_model(model) as (endpoint, _):
        first = run(tmp_path, "run", endpoint=endpoint)
        assert first.returncode == 0, first.stderr
    snapshot = tmp_path / "cached/hub/models--some-org--tiny.model/snapshots" / COMMIT
    assert sorted(file.name for file in snapshot.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert "100%" in first.stderr  # progress
    report = read_report(tmp_path / "out")
    validate(report, load_schema("report"))
    assert report["hub"] == {"name": NAME, "commit": COMMIT}
    assert (read_origin(tmp_path / "out/model/sprunec") or {})["hub"] == report["hub"]
    again = run(tmp_path, "run")
    assert again.returncode == 0, again.stderr
    assert all(entry["cached"] for entry in read_report(tmp_path / "out")["passes"])


def test_looking_asks_nobody(model: Path, tmp_path: Path) -> None:
    with serve_model(model) as (endpoint, asked):
        looked = run(tmp_path, "validate", endpoint=endpoint)
        drawn = run(tmp_path, "run", "--dry-run", endpoint=endpoint)
        assert asked == []
    assert looked.returncode == 0
    assert "warning: /model/path: some-org/tiny.model is neither a directory here nor a model in" in looked.stderr
    assert drawn.returncode == 3
    assert "error: /model/path: some-org/tiny.model is neither a directory here nor a model in" in drawn.stderr


@pytest.mark.parametrize(
    ("changes", "gated", "told"),
    [
        ({"path": "some-org/other"}, False, "some-org/other: the hub has no such model"),
        ({"revision": "v9"}, False, "some-org/tiny.model: the model has no revision v9"),
        ({}, True, "some-org/tiny.model: the model is gated"),
        (None, False, "and cannot be fetched: "),
    ],
    ids=["name", "revision", "gated", "offline"],
)
def test_what_cannot_be_fetched_is_one_error(
    model: Path, tmp_path: Path, changes: dict[str, Any] | None, gated: bool, told: str
) -> None:
    with serve_model(model, gated=gated) as (endpoint, _):
        done = run(tmp_path, "run", endpoint=NOWHERE if changes is None else endpoint, **(changes or {}))
    assert done.returncode == 3
    assert told in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.endswith("\n1 error\n")
    assert not (tmp_path / "out").exists()


def test_a_cached_model_needs_no_network(model: Path, tmp_path: Path) -> None:
    cache_model(tmp_path / "cached/hub", model, revision="v1.0")
    assert run(tmp_path, "run").returncode == 3
    done = run(tmp_path, "run", revision="v1.0")
    assert done.returncode == 0, done.stderr
    assert read_report(tmp_path / "out")["hub"]["commit"] == COMMIT
    assert all(entry["cached"] for entry in read_report(tmp_path / "out")["passes"]) is False
    assert run(tmp_path, "run", revision=COMMIT).returncode == 0
    assert all(entry["cached"] for entry in read_report(tmp_path / "out")["passes"])
