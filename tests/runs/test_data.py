"""Whole runs on CPM-Live's sets and on pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sprunec.cli import app
from tests.data.test_pairs import pair_file
from tests.families.test_vocabulary import PIECES, SPECIAL, file_of
from tests.helpers.live_sets import some_records, write_v1, write_v2
from tests.helpers.small_plans import EMIT, TRAIN, plan, read_report, write

FINETUNE = {"pass": "finetune", "steps": 2}
SCORE = {"pass": "score-mask", "criterion": "taylor", "batches": 2, "unit": "head", "target": {"num_heads": 3}}
SET = {"source": "cpm-live", "path": "set", "block_size": 2048, "max_length": 34, "batch_size": 4}
RECORDS = some_records(90, seed=4, longest=14, words=50)
FULL = [1, 1, 32, 1, 0, *range(10, 42)]  # a row to itself, visible to its end


def ran(folder: Path, data: dict[str, Any], out: str = "out") -> dict[str, Any]:
    path = write(folder, plan(TRAIN, SCORE, FINETUNE, EMIT, data=data))
    done = CliRunner().invoke(app, ["run", str(path), "--out", str(folder / out), "--quiet"])
    assert done.exit_code == 0, done.output
    report = read_report(folder / out)
    assert report["status"] == "done"
    assert report["comparison"]["max_abs_difference"] < 1e-12
    small, masked = report["models"]["small"], report["models"]["masked"]
    assert small["loss"] == pytest.approx(masked["loss"], rel=1e-5)
    return report


def metrics(report: dict[str, Any], pass_: str) -> dict[str, Any]:
    return next(entry["metrics"] for entry in report["passes"] if entry["pass"] == pass_)


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "events.jsonl").read_text().splitlines()]


def test_a_run_trains_on_a_set_with_prompts_looked_up_either_way(tmp_path: Path) -> None:
    write_v1(tmp_path / "set", {"a": RECORDS[:40], "b": [*RECORDS[40:], FULL, FULL]}, 2048)
    released = ran(tmp_path, SET | {"packed_prompts": "text-table"}, "text")
    right = ran(tmp_path, SET | {"packed_prompts": "prompt-table"}, "prompt")
    assert metrics(right, "data")["records"] == 92
    assert metrics(right, "data")["held_out_tokens"] == sum(len(r) - 5 for r in RECORDS[-7:]) + 64
    assert losses(tmp_path / "text") != losses(tmp_path / "prompt")
    assert released["models"]["dense"]["loss"] != right["models"]["dense"]["loss"]
    assert right["models"]["dense"]["loss"] < 5.0
    assert right["models"]["small"]["sample"] is None


def test_the_training_seed_and_order_change_what_is_trained_but_not_what_is_held_out(tmp_path: Path) -> None:
    write_v1(tmp_path / "set", {"a": RECORDS}, 2048)
    ran(tmp_path, SET, "shuffled")
    ran(tmp_path, SET | {"order": "stored"}, "stored")
    first, second = losses(tmp_path / "shuffled"), losses(tmp_path / "stored")
    assert first != second
    events = [json.loads(line) for line in (tmp_path / "stored" / "events.jsonl").read_text().splitlines()]
    assert [event["model_steps"] for event in events] == [1, 2, 3, 4]


def test_a_set_of_version_2_with_another_held_out_and_a_vocabulary_shows_text(tmp_path: Path) -> None:
    write_v2(tmp_path / "set", {"a": RECORDS}, [4096], True)
    write_v1(tmp_path / "kept", {"a": some_records(20, seed=8, longest=14, words=50)}, 2048)
    file_of(tmp_path, *SPECIAL, *PIECES)
    report = ran(tmp_path, SET | {"held_out": "kept", "vocab": "vocab.txt"})
    assert metrics(report, "data")["records"] == 110
    assert report["models"]["small"]["sample"]


def test_a_changed_set_is_read_again_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    write_v1(tmp_path / "set", {"a": RECORDS}, 2048)
    ran(tmp_path, SET)
    assert all(entry["cached"] for entry in ran(tmp_path, SET)["passes"])
    content = bytearray((tmp_path / "set" / "a").read_bytes())
    place = content.index((49).to_bytes(8, "little"))
    content[place : place + 8] = (48).to_bytes(8, "little")
    (tmp_path / "set" / "a").write_bytes(content)
    assert not any(e["cached"] for e in ran(tmp_path, SET)["passes"] if e["pass"] in ("data", "train", "evaluate"))


def test_a_run_fine_tunes_on_pairs(tmp_path: Path) -> None:
    pair_file(tmp_path, [("abcdefg"[: 1 + i % 7] * 3, "xyz"[: i % 4]) for i in range(40)])
    report = ran(tmp_path, {"source": "pairs", "path": "pairs.jsonl", "max_length": 34, "batch_size": 4})
    assert metrics(report, "data")["pairs"] == 36
    assert report["models"]["small"]["sample"].startswith("a")
    assert len(losses(tmp_path / "out")) == 4


def test_bad_data_ends_a_run_with_its_place(tmp_path: Path) -> None:
    write_v1(tmp_path / "set", {"a": RECORDS}, 2048)
    path = write(tmp_path, plan(TRAIN, data=SET | {"block_size": 4096}))
    done = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "out"), "--quiet"])
    assert done.exception is not None
    assert "give data.block_size 2048 if it was written so" in str(done.exception)
