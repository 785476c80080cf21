"""An emitted model says where it comes from, and whoever opens it sees whether it is what was emitted."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import sprunec
from sprunec.compiler.inspect import inspect_model
from sprunec.errors import InputError
from sprunec.plan.schema import validator
from sprunec.show.model_picture import ModelPicture
from tests.helpers.small_plans import execute, guide, read_report


@pytest.fixture
def model(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished / "model/sprunec", tmp_path / "model")


def note(model: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((model / "origin.json").read_text())
    return found


def test_the_model_carries_plan_versions_digests_comparison_and_losses(finished: Path, model: Path) -> None:
    report, origin = read_report(finished), note(model)
    assert origin["plan"]["name"] == "small" and origin["plan"]["seed"] == 7
    steps = origin["plan"]["passes"]
    assert [step["name"] for step in steps][:2] == ["train", "train-mask"]
    learned = steps[1]["options"]
    assert learned["mask_learning_rate"] == min(1.0, 30 / learned["steps"])  # a default, said all the same
    assert [entry["digest"] for entry in origin["passes"]] == [entry["digest"] for entry in report["passes"]]
    assert origin["versions"] == report["versions"]
    assert origin["comparison"] == report["comparison"]
    assert {role: found["loss"] for role, found in origin["models"].items()} == {
        role: found["loss"] for role, found in report["models"].items()
    }
    for name, digest in origin["files"].items():
        assert hashlib.sha256((model / name).read_bytes()).hexdigest() == digest
    assert {"config.json", "model.safetensors", "model.py"} <= set(origin["files"])


def test_inspect_shows_where_a_model_comes_from(finished: Path, model: Path) -> None:
    document = inspect_model(model)
    validator("inspect").validate(document)
    origin = document["origin"]
    assert (origin["plan"], origin["files"]) == ("small", "as emitted")
    assert origin["small_loss"] == read_report(finished)["models"]["small"]["loss"]
    assert origin["note"] == note(model)
    (model / "origin.json").unlink()
    assert "origin" not in inspect_model(model)


@pytest.mark.parametrize("name", ["model.safetensors", "model.py", "kept.json"])
def test_a_file_that_is_not_what_was_emitted_is_seen(name: str, model: Path) -> None:
    content = bytearray((model / name).read_bytes())
    content[-1] ^= 1
    (model / name).write_bytes(content)
    assert inspect_model(model)["origin"]["files"] == f"changed: {name}"
    with pytest.raises(InputError, match=rf"{name}: error: is not what was emitted.*remove origin.json"):
        sprunec.load(model)
    (model / "origin.json").unlink()
    sprunec.load(model)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"files": 1}', '{"plan": {"name": 1}}', "[" * 100_000, '{"files": {}, "plan": []}']
)
def test_a_note_that_is_none_stops_nobody(content: str, model: Path) -> None:
    (model / "origin.json").write_text(content)
    sprunec.load(model)
    validator("inspect").validate(inspect_model(model))


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        (
            '{"files": {}, "models": {"dense": {"loss": null}, "small": 3}, "versions": []}',
            "dense_loss -, small_loss -",
        ),
        ('{"files": {}, "comparison": {"max_abs_difference": NaN}, "made": -Infinity}', "made not finite"),
        ('{"files": {}, "comparison": {"max_abs_difference": 1e999}}', "max_abs_difference not finite"),
        ('{"files": {}, "plan": {"name": {"a": 1}, "model": null}, "made": [1]}', "origin: sprunec -, checkpoint -"),
        ('{"files": {"model.py": null}, "plan": {"name": "\\u001b[2J\\ud800"}}', "plan \ufffd[2J\ufffd"),
        ('{"files": {}, "models": {"dense": {"loss": 1' + "0" * 4000 + "}}}", "dense_loss 10,000,000"),
    ],
)
def test_whatever_a_note_holds_is_shown(content: str, shown: str, model: Path, capsys: Any) -> None:
    (model / "origin.json").write_text(content)
    Console(width=200).print(ModelPicture(inspect_model(model)), crop=False)
    words = " ".join(capsys.readouterr().out.split())
    assert shown in words and "nan" not in words and "None" not in words


def test_a_note_that_names_files_elsewhere_has_none_of_them_read(model: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    digest = hashlib.sha256(b"mine").hexdigest()
    (model / "origin.json").write_text(json.dumps({"files": {"../mine": digest, str(tmp_path / "mine"): digest}}))
    assert inspect_model(model)["origin"]["files"].startswith("changed: ../mine")


def test_the_note_is_no_part_of_any_digest_and_stays_when_nothing_is_done(tmp_path: Path) -> None:
    first = execute(guide(), tmp_path)
    before = (tmp_path / "out/model/sprunec/origin.json").read_bytes()
    again = execute(guide(), tmp_path)
    assert all(entry["cached"] for entry in again["passes"])
    assert (tmp_path / "out/model/sprunec/origin.json").read_bytes() == before
    emitted = next(entry["digest"] for entry in first["passes"] if entry["pass"] == "emit")
    assert not list((tmp_path / "out/store" / emitted).rglob("origin.json"))
