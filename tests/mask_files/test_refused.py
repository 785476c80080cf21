"""Mask files that are wrong, hostile, or leave open what they mean: one error each, with the value and what to do."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sprunec.errors import Diagnostic, InputError
from sprunec.mask_files.forms import Rules
from sprunec.mask_files.reading import read_masks
from sprunec.units import Kept
from tests.mask_files.test_forms import GROUPED, KEPT, REMOVED, WHOLE, saved

NONE = Rules()
OF_HEADS = Rules(lists="kept", lists_of="head")
ALL = {"0": [0], "1": [0], "2": [0]}


def refusal(path: Path, rules: Rules = NONE, whole: Kept = WHOLE) -> Diagnostic:
    with pytest.raises(InputError) as caught:
        read_masks([path], whole, rules=rules)
    (diagnostic,) = caught.value.diagnostics
    assert caught.value.exit_code == 3
    assert diagnostic.file.startswith(str(path))
    assert diagnostic.hint
    return diagnostic


# --- what leaves open what it means ---


@pytest.mark.parametrize(
    ("content", "rules", "message", "option"),
    [
        (ALL, NONE, "does not say whether what it lists is kept or removed", "lists"),
        ({"heads": ALL}, NONE, "does not say whether heads is kept or removed", "lists"),
        ({"0": [True, False, True, True, False, True]}, NONE, "does not say whether what it lists is kept", "lists"),
        (ALL, Rules(lists_of="dim_ff"), "does not say whether what it lists is kept or removed", "lists"),
        ([[1, 2], [0], [3]], KEPT, "does not say of which units its rows are", "lists_of"),
        ({"kept": [[1, 2], [0], [3]]}, NONE, "does not say of which units its rows are", "lists_of"),
    ],
)
def test_what_is_open_is_refused_with_the_option_that_says_it(
    tmp_path: Path, content: Any, rules: Rules, message: str, option: str
) -> None:
    found = refusal(saved(tmp_path / "m.json", content), rules)
    assert message in found.message
    assert f'"{option}"' in found.hint


def test_heads_and_groups_are_told_apart_by_an_option_only(tmp_path: Path) -> None:
    found = refusal(saved(tmp_path / "m.json", {"0": [1]}), REMOVED, GROUPED)
    assert found.message == "does not say whether the list is of heads or of key-value groups"
    assert found.hint == 'say "lists_of": "head" or "kv_group"'


@pytest.mark.parametrize(
    "content",
    [
        {"head_z": torch.full((3, 6), 0.5)},
        {"attn_mask": torch.full((3, 6), 0.5)},
        {"kept": {"heads": {0: torch.full((6,), 0.5)}}},
        {"heads_z": torch.full((3, 6), 0.5)},
        {"hidden_z": torch.full((24,), 0.5)},
    ],
)
def test_soft_masks_are_refused_with_the_option_that_makes_them_hard(tmp_path: Path, content: Any) -> None:
    found = refusal(saved(tmp_path / "m.pt", content))
    assert "values other than 0 and 1, the first 0.5" in found.message
    assert 'give "threshold"' in found.hint


@pytest.mark.parametrize(
    ("content", "rules", "message"),
    [
        ({"pruned_heads": {"0": [1]}}, KEPT, 'pruned_heads lists what is removed, and the plan says "lists": "kept"'),
        ({"kept": {"heads": ALL}}, REMOVED, 'lists what is kept, and the plan says "lists": "removed"'),
        ({"attn_mask": [[True] * 6] * 3}, REMOVED, '"lists" is not used'),
        ({"removed": {"heads": {"0": [1]}}}, Rules(lists_of="head"), '"lists_of" is not used'),
        ({"pruned_heads": {"0": [1]}}, Rules(lists_of="head"), '"lists_of" is not used'),
        ({"pruned_heads": {"0": [1]}}, REMOVED, '"lists" is not used'),
        ({"removed": {"heads": {"0": [0.2] * 6}}}, Rules(threshold=0.1), "values other than 0 and 1"),
    ],
)
def test_options_that_say_otherwise_or_nothing(tmp_path: Path, content: Any, rules: Rules, message: str) -> None:
    assert message in refusal(saved(tmp_path / "m.json", content), rules).message


@pytest.mark.parametrize(
    "content",
    [
        {"head_z": torch.ones(3, 6), "heads_z": torch.ones(3, 6)},
        {"head_z": torch.ones(3, 6), "attn_mask": torch.ones(3, 6)},
        {"pruned_heads": {0: [1]}, "mask_modules": [[True, False]] * 3},
        {"heads": {0: [1]}, "dim_ff": torch.ones(3, 8)},
    ],
)
def test_a_file_of_two_forms_is_of_none(tmp_path: Path, content: Any) -> None:
    assert "is of 2 forms at once" in refusal(saved(tmp_path / "m.pt", content)).message


# --- what does not fit ---


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"head_z": torch.ones(2, 6)}, "head_z says nothing of layer 2, and what it lists is kept"),
        ({"head_z": torch.ones(4, 6)}, "head_z names layer 3, and the model has 3, which count from 0"),
        ({"head_z": torch.ones(3, 7)}, "head_z has 7 values for layer 0, which has 6 heads"),
        ({"head_z": torch.ones(6, 3)}, "head_z names layer 3, and the model has 3"),
        ({"head_z": torch.ones(3)}, "head_z has 1 values for layer 0, which has 6 heads"),
        ({"head_z": torch.ones(3, 2, 3)}, "head_z of layer 0 is a tensor of shape [2, 3]"),
        ({"head_z": torch.tensor(1.0)}, "head_z is a float32 tensor, not one list or tensor a layer"),
        ({"head_z": torch.ones(2**20, 0)}, "head_z is a float32 tensor, not one list or tensor a layer"),
        ({"head_z": torch.ones(3, 6).to_sparse()}, "head_z is a float32 tensor"),
        ({"head_z": None}, "head_z is null"),
        ({"mlp_z": torch.ones(3, 2)}, "mlp_z has 2 values for layer 0, which has 1 feed-forward sublayers"),
        (
            {"intermediate_z": torch.ones(3, 6)},
            "intermediate_z has 6 values for layer 0, which has 8 feed-forward dims",
        ),
        ({"head_z": torch.full((3, 6), float("nan"))}, "values other than 0 and 1, the first nan"),
        ({"head_z": torch.ones(3, 6), "kv_head_z": torch.ones(3, 2)}, "holds 'kv_head_z' beside CoFi's"),
        ({"attn_mask": torch.ones(3, 6), "attn_bias": torch.ones(3, 6)}, "holds 'attn_bias' beside FLAP's"),
        ({"attn_mask": [torch.ones(6), torch.ones(6), torch.ones(5)]}, "attn_mask has 5 values for layer 2"),
        ({"model.l0_module.masks.head.z_loga": torch.ones(3, 6)}, "is no mask file: it holds 'model.l0_mod"),
    ],
)
def test_masks_that_do_not_fit_say_where(tmp_path: Path, content: Any, message: str) -> None:
    assert message in refusal(saved(tmp_path / "m.pt", content)).message


def test_a_mask_of_the_wrong_size_says_what_has_that_size(tmp_path: Path) -> None:
    found = refusal(saved(tmp_path / "m.pt", {"head_z": torch.ones(3, 3)}), whole=GROUPED)
    assert "the layer has 3 key-value groups" in found.hint


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("hidden_z", "hidden_z removes 1 of 24 dims: the model's width is shared by all layers and cannot be cut"),
        ("qk_head_dim_z", "qk_head_dim_z removes 1 of 24 dims: each head would keep query dims of its own"),
        ("vo_head_dim_z", "vo_head_dim_z removes 1 of 24 dims: each head would keep value dims of its own"),
    ],
)
@pytest.mark.parametrize("rules", [NONE, Rules(threshold=0)])
def test_what_cannot_be_cut_must_be_all_ones(tmp_path: Path, key: str, reason: str, rules: Rules) -> None:
    content = {"head_z": torch.ones(3, 6), key: torch.ones(24)}
    assert read_masks([saved(tmp_path / "m.pt", content)], WHOLE, rules=rules).kept == WHOLE
    content[key][5] = 0
    assert reason in refusal(saved(tmp_path / "m.pt", content), rules).message


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"0": [6]}, "heads lists 6 for layer 0, which has 6 heads from 0 on"),
        ({"0": [-1]}, "heads lists -1 for layer 0"),
        ({"0": [2**62]}, "heads lists 4611686018427387904 for layer 0"),
        ({"0": [10**30]}, f"heads of layer 0 holds {10**30}, which is no index"),
        ({"0": [2, 2]}, "heads lists 2 twice for layer 0"),
        ({"0": [1, 0, 1, 1, 0, 0]}, "heads has a 0 or a 1 for each of the heads of a layer: a mask, or indices"),
        ({"0": [1.5]}, "heads of layer 0 holds 1 values other than 0 and 1, the first 1.5"),
        ({"0": ["1"]}, "heads of layer 0 holds '1', which is no index"),
        ({"0": [None]}, "heads of layer 0 holds None, which is no index"),
        ({"0": [[1]]}, "heads of layer 0 holds [1], which is no index"),
        ({"0": [True, 1]}, "heads of layer 0 has booleans among numbers"),
        ({"0": [True, False]}, "heads has 2 values for layer 0, which has 6 heads"),
        ({"0": 3}, "heads of layer 0 is 3"),
        ({"0": "1,2"}, "heads of layer 0 is a str"),
        ({"0": None}, "heads of layer 0 is null"),
        ({"0": {"1": 2}}, "heads of layer 0 is a dict of length 1"),
        ({"3": [1]}, "heads names layer 3, and the model has 3"),
        ({"-1": [1]}, "heads holds '-1', which is no layer's number"),
        ({"00": [1]}, "heads holds '00', which is no layer's number"),
        ({"layer0": [1]}, "heads holds 'layer0', which is no layer's number"),
        ({}, "masks nothing"),
        ([[0]] * 4, "heads names layer 3"),
        (3, "heads is 3, not one list or tensor a layer"),
    ],
)
def test_lists_that_are_wrong_name_layer_and_value(tmp_path: Path, layers: Any, message: str) -> None:
    for name in ("heads", "head"):
        content = {"removed": {name: layers}}
        assert message.replace("heads", name, 1) in refusal(saved(tmp_path / "m.json", content)).message


def test_pruned_heads_that_are_wrong_name_layer_and_value(tmp_path: Path) -> None:
    for layers, message in (
        ({"0": [6]}, "pruned_heads lists 6 for layer 0"),
        ({"7": [0]}, "pruned_heads names layer 7"),
        ({}, "masks nothing"),
        ("1", "pruned_heads is a str, not one list or tensor a layer"),
    ):
        assert message in refusal(saved(tmp_path / "config.json", {"pruned_heads": layers})).message


def test_a_layer_that_is_named_twice(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text('{"removed": {"heads": {"0": [1], "0": [2]}}}')
    assert refusal(path).message == 'an object in it has the key "0" twice'
    path = saved(tmp_path / "m.pt", {"removed": {"heads": {0: [1], "0": [2]}}})
    assert refusal(path).message == "heads names layer 0 twice"


def test_lists_of_what_is_kept_name_every_layer(tmp_path: Path) -> None:
    found = refusal(saved(tmp_path / "m.json", {"0": [1], "2": [3]}), KEPT)
    assert found.message == "the list says nothing of layer 1, and what it lists is kept"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([torch.tensor(1)] * 3, "the list of layer 0 is a single number"),
        (
            [torch.tensor([1, 2], dtype=torch.uint8)] * 3,
            "the list of layer 0 is of bytes, which may be indices or a mask",
        ),
        (torch.ones(3, 6, 4, dtype=torch.bool), "the list of layer 0 is a tensor of shape [6, 4]"),
        (torch.ones(6, dtype=torch.bool), "the list of layer 0 is a single number"),
        ([np.array(["a"])] * 3, "cannot be read as a mask file"),
    ],
)
def test_tensors_that_are_no_lists(tmp_path: Path, rows: Any, message: str) -> None:
    assert message in refusal(saved(tmp_path / "m.pt", rows), OF_HEADS).message


def test_whole_numbers_that_could_be_a_mask(tmp_path: Path) -> None:
    """[1, 0] of two groups: both of them, or the first."""
    two = Kept([{"kv_group": (0, 1)} | dict(layer) for layer in WHOLE])
    rules = Rules(lists="kept", lists_of="kv_group")
    found = refusal(saved(tmp_path / "m.json", [[1, 0], [0, 1], [0, 1]]), rules, two)
    assert found.message == "the list has a 0 or a 1 for each of the key-value groups of a layer: a mask, or indices"
    kept = read_masks([saved(tmp_path / "m.json", [[1, 0], [0, 1], [1]])], two, rules=rules).kept
    assert [layer["kv_group"] for layer in kept] == [(0, 1), (0, 1), (1,)]


def test_units_that_the_model_has_not(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.json", {"kept": {"kv_groups": [[], [], []]}})
    assert refusal(path).message == "kv_groups is of key-value groups, and layer 0 has none of its own"


def test_groups_that_would_keep_unlike_numbers_of_heads(tmp_path: Path) -> None:
    path = saved(tmp_path / "config.json", {"pruned_heads": {"1": [0]}})
    found = refusal(path, whole=GROUPED)
    assert found.message == "key-value groups of layer 1 would keep 1 and 2 heads"
    assert "kv_group" in found.hint
    rows = torch.ones(3, 6)
    rows[1, 0] = 0
    assert refusal(saved(tmp_path / "ours.pt", {"heads_z": rows}), whole=GROUPED).message == found.message


def test_parameters_of_gates_are_no_masks(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"model.l0_module.masks.head.z_loga": torch.ones(3, 6)})
    assert "save the masks (zs)" in refusal(path).hint


def test_what_is_no_mask_is_told_every_form(tmp_path: Path) -> None:
    hint = refusal(saved(tmp_path / "m.pt", {"weight": torch.ones(3, 6)})).hint
    for word in ("pruned_heads", "head_z", "attn_mask", "heads_z", "mask_modules", "kept"):
        assert word in hint


# --- hostile and damaged files ---


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize(
    "content", [{"head_z": Bomb()}, {"pruned_heads": {0: [Bomb()]}}, {0: Bomb()}, [Bomb()], {"attn_mask": [Bomb()]}]
)
def test_a_pickled_object_is_refused_and_not_run(content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, write in (("zip.pt", torch.save), ("raw.pt", lambda what, to: to.write_bytes(pickle.dumps(what)))):
        path = tmp_path / name
        write(content, path)
        assert "cannot be read as a mask file" in refusal(path, OF_HEADS).message
    assert not Path("exploded").exists()


def test_a_tensor_that_is_larger_than_its_file(tmp_path: Path) -> None:
    stretched = torch.ones(1).as_strided((3, 2**45), (0, 0))
    assert "and the file has fewer" in refusal(saved(tmp_path / "m.pt", {"head_z": stretched})).message


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"\x10" + b"\x00" * 7 + b"{", b'{"head_z": '])
@pytest.mark.parametrize("name", ["m.safetensors", "m.pt", "m.json"])
def test_damaged_files(tmp_path: Path, content: bytes, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize("text", ['{"0": [NaN]}', '{"0": [1e999]}', '{"0": [' + "9" * 5000 + "]}", "[" * 100_000, "7"])
def test_json_that_is_no_list(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    refusal(tmp_path / "m.json", Rules(lists="removed"))
