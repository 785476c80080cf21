"""Mask files in BMCook's form, there and back; and files that are not."""

from __future__ import annotations

import io
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from sprunec.errors import InputError
from sprunec.masks.files import load_scores, read_masks, save_scores, write_masks
from sprunec.masks.units import apply_masks
from sprunec.model.config import LayerKept
from tests.conftest import tiny_config

CONFIG = tiny_config(mask_modules=[[False, True], [True, False], [False, False]])
BEFORE = CONFIG.everything()
AFTER = (
    LayerKept((1, 3), (0, 1, 2, 4, 5), None),
    LayerKept(None, None, (0, 7, 39)),
    LayerKept(None, None, tuple(range(40))),
)
FILES = ("layer_mask.pt", "head_mask.pt", "dim_head_mask.pt", "dimff_mask.pt")


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def written(directory: Path) -> dict[str, torch.Tensor]:
    write_masks(directory, BEFORE, AFTER)
    return {key: rows for name in FILES for key, rows in torch.load(directory / name, weights_only=True).items()}


def complaint(path: Path, kept: tuple[LayerKept, ...] = BEFORE) -> str:
    with pytest.raises(InputError) as caught:
        read_masks([path], kept)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.file == str(path)
    return diagnostic.message


def test_rows_are_ranks_among_present_sublayers_and_1_keeps(tmp_path: Path) -> None:
    content = written(tmp_path / "masks")
    assert content["heads_z"].tolist() == [[0, 1, 0, 1], [0, 0, 0, 0]]
    assert content["dim_head_z"].tolist() == [[1, 1, 1, 0, 1, 1], [0] * 6]
    assert content["dimff_z"].shape == (2, 40)
    assert content["dimff_z"].sum(1).tolist() == [3, 40]
    assert content["dimff_z"][0].nonzero().flatten().tolist() == [0, 7, 39]
    assert content["self_att_layer_z"].tolist() == [1, 0]
    assert content["ffn_layer_z"].tolist() == [1, 1]
    assert content["cross_att_layer_z"].numel() == 0
    assert all(rows.dtype == torch.float32 for rows in content.values())


def test_what_is_written_reads_back_to_what_is_kept(tmp_path: Path) -> None:
    write_masks(tmp_path, BEFORE, AFTER)
    masks = read_masks([tmp_path / name for name in FILES], BEFORE)
    assert masks[(2, "head")].tolist() == [False] * 4
    assert masks[(0, "head")].tolist() == [False, True, False, True]
    assert (1, "head") not in masks
    assert (0, "dim_ff") not in masks
    assert apply_masks(BEFORE, masks) == AFTER


def test_layers_of_unlike_widths_read_back(tmp_path: Path) -> None:
    before = (LayerKept((0, 1), (0, 1, 2), (0, 1, 2)), LayerKept((0, 1, 2, 3), (0,), (0,)))
    after = (LayerKept((1,), (0, 2), (1,)), LayerKept((0, 3), (0,), (0,)))
    write_masks(tmp_path, before, after)
    assert torch.load(tmp_path / "head_mask.pt")["heads_z"].tolist() == [[0, 1, 0, 0], [1, 0, 0, 1]]
    assert apply_masks(before, read_masks([tmp_path / name for name in FILES], before)) == after


def test_rows_use_the_indices_of_the_input_model(tmp_path: Path) -> None:
    before = (LayerKept((0, 2, 5), (0,), None),)
    write_masks(tmp_path, before, (LayerKept((5,), (0,), None),))
    assert torch.load(tmp_path / "head_mask.pt")["heads_z"].tolist() == [[0, 0, 1]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bool, torch.int64])
def test_any_dtype_and_trailing_ones_in_the_shape_are_read(tmp_path: Path, dtype: torch.dtype) -> None:
    rows = torch.tensor([[1, 0, 1, 1], [0, 1, 0, 0]], dtype=dtype)[:, :, None]
    masks = read_masks([saved(tmp_path / "heads.pt", {"heads_z": rows})], BEFORE)
    assert masks[(2, "head")].tolist() == [False, True, False, False]


def test_bmcooks_layer_file_names_sublayers(tmp_path: Path) -> None:
    content = {"self_att_layer_z": torch.tensor([0.0, 1]), "cross_att_layer_z": torch.zeros(0)}
    masks = read_masks([saved(tmp_path / "l.pt", content | {"ffn_layer_z": torch.ones(2)})], BEFORE)
    assert {key: mask.tolist() for key, mask in masks.items()} == {
        (0, "attention"): [False],
        (2, "attention"): [True],
        (1, "feed_forward"): [True],
        (2, "feed_forward"): [True],
    }


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def test_a_pickled_object_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "bomb.pt", {"heads_z": Bomb()})
    assert "cannot be read as a mask file" in complaint(path)
    path.write_bytes(pickle.dumps(Bomb()))
    assert "cannot be read as a mask file" in complaint(path)
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"heads_z": torch.ones(3, 4)}, "heads_z has 3 rows, the model has 2 such sublayers"),
        ({"heads_z": torch.ones(2, 3)}, "heads_z has 3 columns, layer 0 has 4 units"),
        ({"heads_z": torch.ones(2, 5)}, "heads_z has 5 columns, layer 0 has 4 units"),
        ({"heads_z": torch.full((2, 4), 0.5)}, "heads_z holds values other than 0 and 1"),
        ({"heads_z": torch.full((2, 4), float("nan"))}, "heads_z holds values other than 0 and 1"),
        ({"heads_z": torch.tensor(1.0)}, "heads_z has 0 rows, the model has 2 such sublayers"),
        ({"cross_att_layer_z": torch.ones(3)}, "cross_att_layer_z has 3 rows, the model has 0 such sublayers"),
        ({"heads": torch.ones(2, 4)}, "holds 'heads'"),
        ({"heads_z": [[1, 1, 1, 1]] * 2}, "it must map names to tensors"),
        (torch.ones(2, 4), "it must map names to tensors"),
    ],
)
def test_masks_that_do_not_fit_say_how(tmp_path: Path, content: Any, message: str) -> None:
    assert message in complaint(saved(tmp_path / "mask.pt", content))


def test_a_missing_file_and_a_directory_are_named(tmp_path: Path) -> None:
    assert "No such file" in complaint(tmp_path / "none.pt")
    assert "cannot be read" in complaint(tmp_path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_damaged_bytes_never_escape_as_another_error(tmp_path: Path, form: str) -> None:
    buffer, rng, refused = io.BytesIO(), random.Random(0), 0
    torch.save({"heads_z": torch.ones(2, 4)}, buffer, _use_new_zipfile_serialization=form == "zip")
    whole = buffer.getvalue() if form != "pickle" else pickle.dumps({"heads_z": [1.0]})
    for _ in range(100):
        damaged = bytearray(whole[: rng.randrange(1, len(whole) + 1)])
        for _ in range(4):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / "x.pt").write_bytes(bytes(damaged))
        try:
            read_masks([tmp_path / "x.pt"], BEFORE)
        except InputError:
            refused += 1
    assert refused > 80


def test_scores_read_back_by_layer_and_unit(tmp_path: Path) -> None:
    scores = {(11, "dim_ff"): torch.randn(5), (2, "head"): torch.randn(4), (2, "dim_head"): torch.randn(8)[::2]}
    save_scores(tmp_path, scores)
    read = load_scores(tmp_path)
    assert list(read) == [(2, "dim_head"), (2, "head"), (11, "dim_ff")]
    assert all(torch.equal(read[key], value) for key, value in scores.items())
