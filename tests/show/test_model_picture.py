"""A model as a picture: what is in each layer, what is absent, its share of the whole; and two beside each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sprunec.compiler.shape import look_at
from sprunec.plan.schema import validator
from sprunec.show.model_picture import ModelPicture, TwoModels
from tests.helpers.hub import SMOLLM2
from tests.helpers.small_plans import MODEL, write
from tests.show.test_tables import INSPECT, rendered, row
from tests.test_cli import run

WIDTHS = (80, 200)


def smollm2(folder: Path, name: str = "dense.json", **changes: Any) -> dict[str, Any]:
    return look_at(write(folder, SMOLLM2[1] | changes, name)) | {"name": name}


def test_layers_are_rows_with_heads_and_dims_as_bars() -> None:
    lines = rendered(ModelPicture(INSPECT), width=130)
    assert lines[0] == "cpm-ant: 1,062,400 parameters, 525,312 prunable (49.4 %)"
    assert lines[1] == "key-value cache: 1,024 bytes a token"
    assert row(lines, "0") == f"0 {'■' * 16} 16 x 16 {'█' * 28} 256 230 k 21.6 % -"
    assert row(lines, "1") == f"1 absent - {'█' * 14} 128 49.3 k 4.6 % -"
    assert row(lines, "head") == "head 16 1 8,192 parameters"
    assert row(lines, "dim_ff") == "dim_ff 384 2 256 to 384 parameters"
    assert lines[-1] == "origin: plan quickstart"


@pytest.mark.parametrize("width", WIDTHS)
def test_groups_stand_together_and_layers_that_are_alike_are_told_once(width: int, tmp_path: Path) -> None:
    lines = rendered(ModelPicture(smollm2(tmp_path)), width)
    assert lines[0] == "Llama: 134,515,008 parameters, 106,202,880 prunable (79.0 %)"
    assert lines[1] == "key-value cache: 23,040 bytes a token, 94.4 MB for a text of 4,096"
    assert row(lines, "0").startswith("0 ■■■ ■■■ ■■■ 3 9 x 64 █")
    assert row(lines, "29").endswith("2.6 % 3.3 %")
    assert row(lines, "28") == "28 more"
    outside = next(" ".join(line.split()) for line in lines if line.startswith("outside"))
    assert outside.startswith("outside of the layers: embedding 28.3 M (21.0 %), the head is the same table")
    assert lines[-1] == "dim_head cannot be cut: its rotary pairs are numbered"
    assert max(map(len, lines)) <= width


def test_what_is_wider_than_its_bar_is_drawn_to_scale(tmp_path: Path) -> None:
    large = smollm2(tmp_path, hidden_size=4096, num_attention_heads=32, num_key_value_heads=8)
    assert "■" not in "".join(rendered(ModelPicture(large), 80))
    assert row(rendered(ModelPicture(large), 80), "0").startswith(f"0 {'█' * 12} 8 32 x 128")


@pytest.mark.parametrize("width", WIDTHS)
def test_two_models_stand_beside_each_other(width: int, tmp_path: Path) -> None:
    small = smollm2(
        tmp_path, "small.json", num_attention_heads=6, num_key_value_heads=2, head_dim=64, intermediate_size=768
    )
    lines = rendered(TwoModels(smollm2(tmp_path), small), width)
    assert " ".join(lines).startswith("dense: dense.json, Llama, 134,515,008 parameters, 106,202,880 prunable")
    first = row(lines, "0")
    assert "3 -> 2" in first and "9 -> 6 x 64" in first and "1,536 -> 768" in first
    # Two thirds of the heads, and half of the dims.
    assert (first.count("█"), first.count("░")) == {80: (8 + 6, 4 + 6), 200: (21 + 16, 11 + 16)}[width]
    assert "parameters 134,515,008 -> 85,854,528 (63.8 %)" in lines
    assert "key-value cache 23,040 -> 15,360 bytes a token (66.7 %)" in lines


def test_layers_that_a_model_lacks_are_absent(tmp_path: Path) -> None:
    lines = rendered(TwoModels(smollm2(tmp_path), smollm2(tmp_path, "small.json", num_hidden_layers=28)), 100)
    assert row(lines, "29").endswith("3 -> - 9 x 64 -> - absent 1,536 -> - 0.0 %")
    assert lines[-1] == "30 layers against 28: those that are left are numbered anew"


def test_inspect_sets_two_models_beside_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = write(tmp_path, MODEL, "dense.json")
    small = write(tmp_path, MODEL | {"dim_ff": 24}, "small.json")
    assert run("inspect", "--diff", dense, small) == 0
    assert "48 -> 24" in capsys.readouterr().out
    assert run("inspect", small, "--diff", dense, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    validator("inspect-diff").validate(document)
    assert [document[which]["layers"][0]["feed_forward"]["dim_ff"] for which in ("dense", "small")] == [48, 24]


def test_a_pipe_gets_no_colours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", write(tmp_path, MODEL, "model.json")) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "■" * 8 in printed
