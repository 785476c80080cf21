"""What `run --dry-run` says of a plan, and what it does not read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from sprunec.families.cpm_ant.blocks import build, initialize
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.graph import weights
from sprunec.plan.schema import validator
from tests.helpers.small_plans import EMIT, MODEL, TRAIN, guide, plan, save_weights, write
from tests.runs.test_causal_lms import directory
from tests.test_cli import run


def test_a_strict_dry_run_wants_every_file(tmp_path: Path) -> None:
    path = write(tmp_path, plan(TRAIN, model={"config": MODEL, "checkpoint": "gone.pt"}))
    assert run("run", path, "--dry-run") == 0
    assert run("run", path, "--dry-run", "--strict") == 3


def test_a_dry_run_reads_large_weights_only_where_the_store_may_have_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = plan({"pass": "score-mask", "criterion": "random", "unit": "head", "target": {"num_heads": 3}}, EMIT)
    config = ModelConfig.from_dict(MODEL)
    model = build(config)
    initialize(model, 0)
    save_file(model.state_dict(), tmp_path / "mine.safetensors")
    content["model"] = {"config": MODEL, "checkpoint": "mine.safetensors"}
    path, out = write(tmp_path, content), tmp_path / "out"

    def digests() -> list[str | None]:
        assert run("run", path, "--out", out, "--dry-run", "--json") == 0
        document = json.loads(capsys.readouterr().out)
        validator("graph").validate(document)
        return [node["digest"] for node in document["nodes"] if node["pass"] != "data"]

    known = digests()
    assert None not in known
    monkeypatch.setattr(weights, "DRY_READ", (tmp_path / "mine.safetensors").stat().st_size)
    assert digests() == known
    monkeypatch.setattr(weights, "DRY_READ", (tmp_path / "mine.safetensors").stat().st_size - 1)
    assert set(digests()) == {None}
    (out / "store").mkdir(parents=True)
    assert digests() == known


def test_a_dry_run_says_what_is_needed_and_no_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", write(tmp_path, guide()), "--dry-run", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    validator("graph").validate(document)
    each = [node["needs"] for node in document["nodes"]]
    assert document["needs"]["memory"] == max(needs["memory"] for needs in each)
    assert all(needs["memory"] == sum(needs["memory_of"].values()) for needs in each)
    assert document["needs"]["operations"] == pytest.approx(sum(needs["operations"] for needs in each))
    assert document["measured"] is None
    assert all(needs["seconds"] is None for needs in each)


def test_a_dry_run_measures_a_block_where_it_is_asked_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_weights(tmp_path / "weights.pt")
    path = write(tmp_path, plan(TRAIN, EMIT, model={"config": MODEL, "checkpoint": "weights.pt"}))
    assert run("run", path, "--dry-run", "--measure", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    validator("graph").validate(document)
    speeds = document["measured"]
    assert min(speeds[name] for name in ("float32", "float64", "training", "decoding", "read", "trace", "opening")) > 0
    assert speeds["decoding"] < speeds["float32"]
    train = next(node["needs"] for node in document["nodes"] if node["pass"] == "train")
    wanted = (
        train["operations"] / speeds["training"] + (train["read"] + train["disk"]) / speeds["read"] + speeds["opening"]
    )
    assert train["seconds"] == pytest.approx(wanted)
    each = sum(node["needs"]["seconds"] for node in document["nodes"])
    assert document["needs"]["seconds"] == pytest.approx(each)
    assert run("run", path, "--dry-run", "--measure") == 0
    assert "by what was measured on" in capsys.readouterr().out


def test_only_a_dry_run_measures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run", write(tmp_path, plan(TRAIN)), "--measure") == 2
    assert "--dry-run" in capsys.readouterr().err


def test_a_dry_run_warns_of_what_a_run_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sprunec.show.output.physical_memory", lambda: 100_000)
    monkeypatch.setattr("sprunec.execution.fits.physical_memory", lambda: 100_000)
    path = write(tmp_path, plan(TRAIN))
    assert run("run", path, "--dry-run") == 0
    told = capsys.readouterr().err
    assert "warning: 2-load needs a new model in memory, 0.0 GB, and this machine has 0.0 GB" in told
    assert run("run", path, "--out", tmp_path / "out") == 1
    assert "2-load needs a new model in memory" in capsys.readouterr().err
    assert not (tmp_path / "out" / "store").exists()


def test_a_dry_run_says_what_of_tasks_is_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory(tmp_path, "llama")
    content = plan({"pass": "evaluate", "tasks": ["arc_easy"]}, model={"path": "dense"})
    path = write(tmp_path, content)
    assert run("run", path, "--dry-run", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    validator("graph").validate(document)
    *others, tasks = [node["needs"] for node in document["nodes"]]
    assert tasks["operations"] is None
    assert tasks["memory_of"]["model"] == 4 * document["parameters"]["before"]
    assert document["needs"]["operations"] == pytest.approx(sum(needs["operations"] for needs in others))
    assert run("run", path, "--dry-run") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "evaluate-tasks-dense will take is not known before: they are in no sum" in said
