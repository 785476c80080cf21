"""Mask files as they are written: keys, shapes, dtypes, polarity; and nothing is touched that need not be."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from sprunec.bmcook.masks.mask_forms import write_mask
from sprunec.durable import put_file
from sprunec.families.base_config import everything
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.mask_files.reading import read_masks
from sprunec.masks.mask_tensors import load_scores, save_scores, write_masks
from sprunec.units import Kept
from tests.conftest import kept_layer, tiny_config

ROOT = Path(__file__).parents[2]
CONFIG = tiny_config(mask_modules=[[False, True], [True, False], [False, False]])
BEFORE = everything(CONFIG)
AFTER = Kept(
    (
        kept_layer((1, 3), (0, 1, 2, 4, 5), None),
        kept_layer(None, None, (0, 7, 39)),
        kept_layer(None, None, tuple(range(40))),
    )
)
FILES = ("layer_mask.pt", "head_mask.pt", "dim_head_mask.pt", "dimff_mask.pt")
BILLION = everything(ModelConfig.from_dict(json.loads((ROOT / "plans/cpm-ant-1b.json").read_text())))


def opened(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def written(directory: Path) -> dict[str, torch.Tensor]:
    write_masks(directory, BEFORE, AFTER)
    return {key: rows for name in FILES for key, rows in opened(directory / name).items()}


def save(path: Path, form: str, units: Any, before: Any = BEFORE, after: Any = AFTER, whole: Any = BEFORE) -> Any:
    """What is in the file that a pass of these units writes."""
    write_mask(path, form, units, whole, before, after)
    return json.loads(path.read_text()) if path.suffix == ".json" else opened(path)


def test_rows_are_ranks_among_present_sublayers_and_1_keeps(tmp_path: Path) -> None:
    content = written(tmp_path / "masks")
    assert content["heads_z"].tolist() == [[0, 1, 0, 1], [0, 0, 0, 0]]
    assert content["dim_head_z"].tolist() == [[1, 1, 1, 0, 1, 1], [0] * 6]
    assert content["dimff_z"].shape == (2, 40)
    assert content["dimff_z"].sum(1).tolist() == [3, 40]
    assert content["dimff_z"][0].nonzero().flatten().tolist() == [0, 7, 39]
    assert content["self_att_layer_z"].tolist() == [1, 0]
    assert content["ffn_layer_z"].tolist() == [1, 1]
    assert content["cross_att_layer_z"].shape == (0,)
    assert all(rows.dtype == torch.float32 for rows in content.values())


def test_what_is_written_reads_back_to_what_is_kept(tmp_path: Path) -> None:
    write_masks(tmp_path, BEFORE, AFTER)
    found = read_masks([tmp_path / name for name in FILES], BEFORE)
    assert found.masks[(2, "head")].tolist() == [False] * 4
    assert found.masks[(0, "head")].tolist() == [False, True, False, True]
    assert (1, "head") not in found.masks
    assert (0, "dim_ff") not in found.masks
    assert found.kept == AFTER


def test_layers_of_unlike_widths_read_back(tmp_path: Path) -> None:
    before = Kept((kept_layer((0, 1), (0, 1, 2), (0, 1, 2)), kept_layer((0, 1, 2, 3), (0,), (0,))))
    after = Kept((kept_layer((1,), (0, 2), (1,)), kept_layer((0, 3), (0,), (0,))))
    write_masks(tmp_path, before, after)
    assert opened(tmp_path / "head_mask.pt")["heads_z"].tolist() == [[0, 1, 0, 0], [1, 0, 0, 1]]
    assert read_masks([tmp_path / name for name in FILES], before).kept == after


def test_rows_use_the_indices_of_the_input_model(tmp_path: Path) -> None:
    before = Kept([kept_layer((0, 2, 5), (0,), None)])
    write_masks(tmp_path, before, Kept([kept_layer((5,), (0,), None)]))
    assert opened(tmp_path / "head_mask.pt")["heads_z"].tolist() == [[0, 0, 1]]


def test_a_pass_writes_a_row_per_sublayer_that_enters_it_and_the_input_models_columns(tmp_path: Path) -> None:
    whole = Kept([kept_layer((0, 1, 2, 3), (0, 1), (0, 1, 2))] * 3)
    before = Kept(
        (
            kept_layer((0, 2), (0, 1), (0, 1)),
            kept_layer(None, None, (0, 1, 2)),
            kept_layer((1, 2, 3), (0, 1), None),
        )
    )
    after = Kept((kept_layer((2,), (0, 1), (0, 1)), kept_layer(None, None, (1,)), kept_layer((1, 3), (0, 1), None)))
    content = save(tmp_path / "m.pt", "bmcook", {"head", "dim_ff"}, before, after, whole)
    assert list(content) == ["heads_z", "dimff_z"]
    assert content["heads_z"].tolist() == [[0, 0, 1, 0], [0, 1, 0, 1]]
    assert content["dimff_z"].tolist() == [[1, 1, 0], [0, 1, 0]]
    assert read_masks([tmp_path / "m.pt"], whole, before).kept == after


def test_the_billion_models_masks_are_25_by_16_and_21_by_700(tmp_path: Path) -> None:
    """As BMCook's two fine passes leave them for CPM-Ant 1B, which has 25 attentions and 21 feed-forwards."""
    fewer = [{"head": sorted((i + step) % 16 for step in range(4)), "dim_ff": range(0, 700, 2)} for i in range(48)]
    small = Kept(
        {unit: tuple(some.get(unit, units)) for unit, units in layer.items()}
        for layer, some in zip(BILLION, fewer, strict=True)
    )
    heads = save(tmp_path / "h.pt", "bmcook", {"head"}, BILLION, small, BILLION)
    dims = save(tmp_path / "d.pt", "bmcook", {"dim_ff"}, BILLION, small, BILLION)
    assert {key: (rows.shape, rows.dtype) for key, rows in (heads | dims).items()} == {
        "heads_z": ((25, 16), torch.float32),
        "dimff_z": ((21, 700), torch.float32),
    }
    assert heads["heads_z"].sum(1).tolist() == [4] * 25
    assert heads["heads_z"][3].nonzero().flatten().tolist() == [4, 5, 6, 7]  # the fourth attention is in layer 4
    both = read_masks([tmp_path / "h.pt", tmp_path / "d.pt"], BILLION)
    assert both.kept == small


@pytest.mark.parametrize("unit", ["block", "attention", "feed_forward"])
def test_whole_sublayers_are_bmcooks_three_keys(unit: str, tmp_path: Path) -> None:
    content = save(tmp_path / "m.pt", "bmcook", {unit})
    assert {key: rows.tolist() for key, rows in content.items()} == {
        "self_att_layer_z": [1, 0],
        "cross_att_layer_z": [],
        "ffn_layer_z": [1, 1],
    }
    assert all(rows.dtype == torch.float32 for rows in content.values())


def test_the_plugins_form_has_its_names_shapes_and_half_precision(tmp_path: Path) -> None:
    units = {"block", "attention", "feed_forward", "head", "dim_head", "dim_ff"}
    content = save(tmp_path / "m.pt", "plugin", units)
    assert type(content) is OrderedDict
    assert {key: tuple(rows.shape) for key, rows in content.items()} == {
        "transformer": (3, 1),
        "att": (2, 1),
        "ffn": (2, 1),
        "num_heads": (2, 4),
        "dim_head": (2, 6),
        "dim_ff": (2, 40),
    }
    assert all(rows.dtype == torch.float16 for rows in content.values())
    assert content["num_heads"].tolist() == [[0, 1, 0, 1], [0, 0, 0, 0]]
    assert content["att"].tolist() == [[1], [0]]
    assert list(save(tmp_path / "one.pt", "plugin", {"dim_ff"})) == ["dim_ff"]


@pytest.mark.parametrize("name", ["m.json", "m.pt"])
def test_mask_modules_are_python_booleans_for_every_layer_and_true_removes(name: str, tmp_path: Path) -> None:
    content = save(tmp_path / name, "mask_modules", {"attention", "feed_forward"})
    assert content == [[False, True], [True, False], [True, False]]
    assert all(type(value) is bool for pair in content for value in pair)


@pytest.mark.parametrize("form", ["bmcook", "plugin", "mask_modules"])
def test_every_form_of_whole_sublayers_reads_back(form: str, tmp_path: Path) -> None:
    after = Kept(({}, BEFORE[1], kept_layer(None, None, BEFORE[2]["dim_ff"])))
    write_mask(tmp_path / "m.pt", form, {"attention", "feed_forward"}, BEFORE, BEFORE, after)
    assert read_masks([tmp_path / "m.pt"], BEFORE).kept == after


@pytest.mark.parametrize("form", ["bmcook", "plugin"])
def test_every_form_of_units_inside_sublayers_reads_back(form: str, tmp_path: Path) -> None:
    write_mask(tmp_path / "m.pt", form, {"head", "dim_head", "dim_ff"}, BEFORE, BEFORE, AFTER)
    assert read_masks([tmp_path / "m.pt"], BEFORE).kept == AFTER


def test_the_same_content_is_left_alone_and_another_replaces_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "made" / "here" / "m.pt"
    save(path, "bmcook", {"head"})
    os.utime(path, ns=(1, 1))
    save(path, "bmcook", {"head"})
    assert path.stat().st_mtime_ns == 1
    save(path, "bmcook", {"dim_ff"})
    assert path.stat().st_mtime_ns > 1
    assert [p.name for p in path.parent.iterdir()] == ["m.pt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        put_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_scores_read_back_by_layer_and_unit(tmp_path: Path) -> None:
    scores = {(11, "dim_ff"): torch.randn(5), (2, "head"): torch.randn(4), (2, "dim_head"): torch.randn(8)[::2]}
    save_scores(tmp_path, scores)
    read = load_scores(tmp_path)
    assert list(read) == [(2, "dim_head"), (2, "head"), (11, "dim_ff")]
    assert all(torch.equal(read[key], value) for key, value in scores.items())
