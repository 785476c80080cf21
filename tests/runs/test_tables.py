"""Whole runs on documents: tables as JSON lines, and what is wrong with a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from sprunec.cli import app
from sprunec.data.text import read_text
from sprunec.data.tokenizer import read_tokenizer
from tests.helpers.small_plans import TRAIN, artifact, plan, read_report, write
from tests.runs.test_causal_lms import SCORED, directory, run

HELD_OUT = {"held_out": 0.1}


@pytest.fixture
def documents(tmp_path: Path) -> list[str]:
    """Documents of 700 characters, as a table and as JSON lines."""
    text = read_text("python-docs", ())
    found = [text[start : start + 700] for start in range(0, 42_000, 700)]
    rows = pyarrow.table({"body": found, "number": range(len(found))})
    pyarrow.parquet.write_table(rows, tmp_path / "docs.parquet", row_group_size=7)
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in found))
    return found


@pytest.mark.slow
def test_a_table_is_as_good_as_json_lines(documents: list[str], tmp_path: Path) -> None:
    directory(tmp_path, "qwen3")
    cut = SCORED | {"unit": "dim_ff", "target": {"dim_ff": 40}}
    by_table = run(tmp_path, cut, source="parquet", path="docs.parquet", column="body").data
    data = artifact(tmp_path / "out", "data")
    by_lines = run(tmp_path, cut, source="jsonl", path="docs.jsonl").data
    assert (data / "train.npy").read_bytes() == (artifact(tmp_path / "out", "data") / "train.npy").read_bytes()
    assert by_table["models"]["small"]["loss"] == by_lines["models"]["small"]["loss"]
    metrics = by_table["passes"][0]["metrics"]
    ends = len(documents) - 2  # none between the parts, since a document begins there
    count = metrics["training_tokens"] + metrics["held_out_tokens"]
    assert count == ends + sum(map(len, map(read_tokenizer(data).encode, documents)))


@pytest.mark.parametrize(
    ("changes", "hurt", "told"),
    [
        ({}, False, "docs.parquet: error: has no column text"),
        ({"column": "number"}, False, "docs.parquet: error: its column number has int64 and no text"),
        ({"column": "body"}, True, "docs.parquet: error: cannot be read as a Parquet table"),
        ({"column": "body", "held_out": "docs.jsonl"}, False, "docs.jsonl: this is plain text, not a Parquet table"),
    ],
    ids=["no column", "numbers", "broken", "held out"],
)
@pytest.mark.usefixtures("documents")
def test_a_table_that_cannot_be_read_is_one_error(
    changes: dict[str, Any], hurt: bool, told: str, tmp_path: Path
) -> None:
    if hurt:
        (tmp_path / "docs.parquet").write_bytes((tmp_path / "docs.parquet").read_bytes()[:-20])
    data = {"source": "parquet", "path": "docs.parquet", "max_length": 34, "batch_size": 4} | changes
    path = write(tmp_path, plan(TRAIN, data=data))
    done = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "out"), "--quiet"])
    from sprunec.errors import InputError

    assert isinstance(done.exception, InputError) and done.exception.exit_code == 3
    assert len(done.exception.diagnostics) == 1
    assert told in str(done.exception)
    if (tmp_path / "out").exists():
        assert read_report(tmp_path / "out")["status"] == "failed"
