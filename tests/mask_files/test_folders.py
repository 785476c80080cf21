"""A folder with a file for each layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sprunec.file_digests import file_digest
from sprunec.mask_files.forms import Rules
from sprunec.mask_files.reading import read_masks
from tests.mask_files.test_forms import GROUPED, HEADS, KEPT, KEPT_HEADS, REMOVED, WHOLE, dims, heads, saved
from tests.mask_files.test_refused import refusal

MASKS = [torch.tensor([index in row for index in range(6)]) for row in KEPT_HEADS]
KEPT_DIMS = [(0,), (1, 2), (7,)]


def folder(tmp_path: Path, files: dict[str, Any]) -> Path:
    made = tmp_path / "masks"
    made.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        saved(made / name, content)
    return made


@pytest.mark.parametrize("name", ["layer_{}.pt", "{}.pt", "model.layers.{}.pth", "Layer{}.bin", "run2_layer_{}.pt"])
def test_flaps_masks_one_file_a_layer(tmp_path: Path, name: str) -> None:
    rows = [torch.tensor([index in row for index in range(8)]) for row in KEPT_DIMS]
    pairs = [{"attn_mask": mask, "mlp_mask": row} for mask, row in zip(MASKS, rows, strict=True)]
    found = read_masks([folder(tmp_path, {name.format(i): pair for i, pair in enumerate(pairs)})], WHOLE)
    assert (heads(found), dims(found)) == (KEPT_HEADS, KEPT_DIMS)


@pytest.mark.parametrize("name", ["attn_mask_{}.pt", "layers.{}.attn_mask.pt", "layer_{}-attn_mask.pt"])
def test_a_files_name_says_what_a_bare_tensor_is(tmp_path: Path, name: str) -> None:
    found = read_masks([folder(tmp_path, {name.format(i): mask for i, mask in enumerate(MASKS)})], WHOLE)
    assert heads(found) == KEPT_HEADS


def test_index_files_of_heads_and_dims(tmp_path: Path) -> None:
    files: dict[str, Any] = {f"heads_{i}.pt": torch.tensor(row) for i, row in enumerate(KEPT_HEADS)}
    files |= {f"dim_ff_{i}.json": list(row) for i, row in enumerate(KEPT_DIMS)}
    found = read_masks([folder(tmp_path, files)], WHOLE, rules=KEPT)
    assert (heads(found), dims(found)) == (KEPT_HEADS, KEPT_DIMS)


def test_index_files_that_say_nothing_take_it_from_the_options(tmp_path: Path) -> None:
    made = folder(tmp_path, {"layer_0.json": [1], "layer_2.json": [0]})
    assert heads(read_masks([made], WHOLE, rules=REMOVED)) == [(0, 2, 3, 4, 5), HEADS, HEADS[1:]]
    groups = read_masks([made], GROUPED, rules=Rules(lists="removed", lists_of="kv_group"))
    assert [layer["kv_group"] for layer in groups.kept] == [(0, 2), (0, 1, 2), (1, 2)]
    assert '"lists"' in refusal(made).hint
    assert '"lists_of"' in refusal(made, REMOVED, GROUPED).hint
    assert "says nothing of layer 1" in refusal(made, KEPT).message


def test_lists_under_words_and_zs_by_layer(tmp_path: Path) -> None:
    files = {f"layer{i}.json": {"kept": {"heads": list(row)}} for i, row in enumerate(KEPT_HEADS)}
    assert heads(read_masks([folder(tmp_path, files)], WHOLE)) == KEPT_HEADS
    zs = {f"{i}.safetensors": {"head_z": mask.float().reshape(1, 6, 1, 1)} for i, mask in enumerate(MASKS)}
    assert heads(read_masks([folder(tmp_path / "zs", zs)], WHOLE)) == KEPT_HEADS


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "the folder has no mask files"),
        ({"mask.json": [1]}, "its name has 0 numbers that could be its layer's"),
        ({"llama2_7b_3.json": [1]}, "its name has 3 numbers that could be its layer's"),
        ({"0.json": [1], "layer_0.json": [2]}, "says again what another file of the folder says of layer 0"),
        ({"0.json": [1], "1.json": {"heads": [2]}}, "holds 0 beside names of units"),
        ({"mlp_0.json": [1], "mlp_1.json": [1]}, 'its name says "mlp", which is no unit'),
        ({"0.json": [6]}, "the list lists 6 for layer 0, which has 6 heads"),
        ({"9.json": [1]}, "the list names layer 9"),
        ({"0.json": {"0": [1]}}, "the list of layer 0 is a dict of length 1"),
    ],
)
def test_folders_that_are_wrong(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    assert message in refusal(folder(tmp_path, files), REMOVED).message


def test_a_number_that_is_a_name_and_a_layer(tmp_path: Path) -> None:
    made = folder(tmp_path, {"0.pt": torch.tensor([1]), "1.pt": {0: torch.tensor([2])}})
    assert "says again what another file of the folder says of layer 1" in refusal(made, REMOVED).message


def test_what_else_is_in_a_folder_is_told(tmp_path: Path) -> None:
    made = folder(tmp_path, {"0.json": [1]})
    (made / ".hidden").write_text("")
    assert heads(read_masks([made], WHOLE, rules=REMOVED))[0] == (0, 2, 3, 4, 5)
    (made / "README.md").write_text("1")
    assert "is in a folder of masks and ends in none of .json" in refusal(made, REMOVED).message


def test_names_tell_layers_and_so_are_a_part_of_the_digest(tmp_path: Path) -> None:
    made = folder(tmp_path, {"0.json": [1]})
    before = file_digest(made)
    (made / "0.json").rename(made / "1.json")
    assert file_digest(made) != before
