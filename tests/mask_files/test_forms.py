"""What each form keeps: a file before, the heads and dims that are left after."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sprunec.mask_files.forms import Rules
from sprunec.mask_files.reading import read_masks
from sprunec.masks.layer_masks import Matched
from sprunec.units import Kept

HEADS, DIMS = tuple(range(6)), tuple(range(8))
LAYER = {"head": HEADS, "dim_head": (0, 1, 2, 3), "dim_ff": DIMS}
WHOLE = Kept([LAYER] * 3)
GROUPED = Kept([{"kv_group": (0, 1, 2)} | LAYER] * 3)  # two heads in each group
KEPT_HEADS = [(0, 2, 5), (1,), HEADS]
REMOVED_HEADS = [[1, 3, 4], [0, 2, 3, 4, 5], []]
KEPT, REMOVED = Rules(lists="kept"), Rules(lists="removed")


def saved(path: Path, content: Any) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(content))
    elif path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def read(tmp_path: Path, content: Any, rules: Rules = Rules(), name: str = "m.pt", whole: Kept = WHOLE) -> Matched:  # noqa: B008
    return read_masks([saved(tmp_path / name, content)], whole, rules=rules)


def heads(found: Matched) -> list[tuple[int, ...] | None]:
    return [layer.get("head") for layer in found.kept]


def dims(found: Matched) -> list[tuple[int, ...] | None]:
    return [layer.get("dim_ff") for layer in found.kept]


def ones(rows: list[Any], width: int) -> torch.Tensor:
    """(rows, width), 1 where a row lists."""
    return torch.tensor([[float(index in row) for index in range(width)] for row in rows])


# --- transformers ---


@pytest.mark.parametrize("around", [{}, {"model_type": "gpt2", "n_head": 6}])
def test_pruned_heads_are_removed_and_layers_that_are_not_named_keep_all(tmp_path: Path, around: Any) -> None:
    """Alone, or in a config.json."""
    content = around | {"pruned_heads": {"0": [1, 3, 4], "1": [0, 2, 3, 4, 5]}}
    found = read(tmp_path, content, name="config.json")
    assert heads(found) == KEPT_HEADS
    assert dims(found) == [DIMS] * 3


def test_pruned_heads_of_a_pickled_dict_have_numbers_for_keys(tmp_path: Path) -> None:
    assert heads(read(tmp_path, {"pruned_heads": {0: [1, 3, 4], 1: (0, 2, 3, 4, 5)}})) == KEPT_HEADS


def test_a_layer_whose_heads_are_all_pruned_has_no_attention(tmp_path: Path) -> None:
    found = read(tmp_path, {"pruned_heads": {"1": list(HEADS)}}, name="config.json")
    assert heads(found) == [HEADS, None, HEADS]
    assert dims(found) == [DIMS] * 3


# --- CoFi and LLM-Shearing ---


@pytest.mark.parametrize("shape", [(3, 1, 6, 1, 1), (3, 1, 6, 1), (3, 6)], ids=["CoFi", "LLM-Shearing", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bool, torch.int64, torch.uint8])
@pytest.mark.parametrize("name", ["zs.pt", "zs.safetensors"])
def test_zs_keep_where_they_have_1(tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype, name: str) -> None:
    content = {
        "head_z": ones(KEPT_HEADS, 6).reshape(shape).to(dtype),
        "intermediate_z": ones([(0,), (1, 2), (7,)], 8).reshape(3, 1, 1, 8),
        "mlp_z": torch.tensor([1.0, 1, 0]),
        "head_layer_z": torch.tensor([0.0, 1, 1]),
        "hidden_z": torch.ones(24),
        "qk_head_dim_z": torch.ones(3, 24),
    }
    found = read(tmp_path, content, name=name)
    assert heads(found) == [None, (1,), HEADS]
    assert dims(found) == [(0,), (1, 2), None]
    assert found.notes == ()


def test_layer_z_is_of_attention_and_feed_forward_alike(tmp_path: Path) -> None:
    assert read(tmp_path, {"layer_z": torch.tensor([1, 0, 1])}).kept == Kept((LAYER, {}, LAYER))


def test_soft_zs_are_cut_as_their_own_code_cuts_them(tmp_path: Path) -> None:
    """CoFi prunes where z is 0, however little the others are; what they are is told."""
    soft = ones(KEPT_HEADS, 6) * torch.linspace(0.05, 1.0, 18).reshape(3, 6)
    content = {"head_z": soft.reshape(3, 1, 6, 1, 1), "hidden_z": torch.full((24,), 0.9)}
    found = read(tmp_path, content, Rules(threshold=0))
    assert heads(found) == KEPT_HEADS
    told = "m.pt: 9 values of head_z keep a unit and are not 1; its weights stay as they are"
    assert found.notes == (told,)


# --- soft masks ---


def test_a_threshold_keeps_what_is_above_it_in_every_form(tmp_path: Path) -> None:
    values = torch.tensor([[0.5, 0.2, 0.9, 0.49, 0.51, 0]] * 3)
    for content in ({"head_z": values}, {"heads_z": values}, {"attn_mask": values}, {"kept": {"heads": values}}):
        assert heads(read(tmp_path, content, Rules(threshold=0.5))) == [(2, 4)] * 3
        assert heads(read(tmp_path, content, Rules(threshold=0.1))) == [(0, 1, 2, 3, 4)] * 3
    as_json = {"kept": {"heads": {str(layer): row for layer, row in enumerate(values.tolist())}}}
    assert heads(read(tmp_path, as_json, Rules(threshold=0.5), "soft.json")) == [(2, 4)] * 3


def test_a_threshold_leaves_hard_masks_as_they_are(tmp_path: Path) -> None:
    found = read(tmp_path, {"attn_mask": ones(KEPT_HEADS, 6).bool()}, Rules(threshold=0.5))
    assert (heads(found), found.notes) == (KEPT_HEADS, ())


# --- FLAP ---


@pytest.mark.parametrize("how", ["stacked", "list", "by number", "arrays", "floats"])
def test_flaps_masks_keep_where_they_are_true(tmp_path: Path, how: str) -> None:
    def given(rows: torch.Tensor) -> Any:
        by_layer = list(rows.bool())
        return {
            "stacked": rows.bool(),
            "list": by_layer,
            "by number": dict(enumerate(by_layer)),
            "arrays": [each.numpy() for each in by_layer],
            "floats": rows.half(),
        }[how]

    content = {"attn_mask": given(ones(KEPT_HEADS, 6)), "mlp_mask": given(ones([(1,), (0, 7), DIMS], 8))}
    found = read(tmp_path, content)
    assert heads(found) == KEPT_HEADS
    assert dims(found) == [(1,), (0, 7), DIMS]


# --- lists ---


def numbered(rows: list[Any]) -> dict[str, Any]:
    return {str(layer): list(row) for layer, row in enumerate(rows)}


def test_lists_are_what_is_kept_or_removed_as_the_option_says(tmp_path: Path) -> None:
    removed = {"0": [1, 3, 4], "1": [0, 2, 3, 4, 5]}
    assert heads(read(tmp_path, removed, REMOVED, "m.json")) == KEPT_HEADS
    assert heads(read(tmp_path, numbered(KEPT_HEADS), KEPT, "m.json")) == KEPT_HEADS
    assert heads(read(tmp_path, numbered(KEPT_HEADS), REMOVED, "m.json")) == [(1, 3, 4), (0, 2, 3, 4, 5), None]


def test_lists_by_units_or_in_words_need_no_option_that_says_so(tmp_path: Path) -> None:
    named = {"heads": numbered(KEPT_HEADS), "dim_ff": numbered([(0,), (1, 2), (7,)])}
    for content, rules in ((named, KEPT), ({"kept": named}, Rules()), ({"kept": named}, KEPT)):
        found = read(tmp_path, content, rules, "m.json")
        assert (heads(found), dims(found)) == (KEPT_HEADS, [(0,), (1, 2), (7,)])
    both = {"kept": {"dim_ff": numbered([(0,), (1, 2), (7,)])}, "removed": {"head": {"1": [0]}}}
    found = read(tmp_path, both, name="m.json")
    assert (heads(found), dims(found)) == ([HEADS, HEADS[1:], HEADS], [(0,), (1, 2), (7,)])


@pytest.mark.parametrize(
    "rows",
    [
        [list(row) for row in KEPT_HEADS],
        [torch.tensor(row) for row in KEPT_HEADS],
        [np.array(row) for row in KEPT_HEADS],
        [torch.tensor(row)[:, None] for row in KEPT_HEADS],
        [[torch.tensor(index) for index in row] for row in KEPT_HEADS],
        [torch.tensor(row, dtype=torch.int32) for row in reversed(KEPT_HEADS)][::-1],
        ones(KEPT_HEADS, 6).bool(),
        ones(KEPT_HEADS, 6).bool().numpy(),
        ones(KEPT_HEADS, 6).bool().tolist(),
        OrderedDict((layer, torch.tensor(row)) for layer, row in enumerate(KEPT_HEADS)),
    ],
    ids=["lists", "tensors", "arrays", "columns", "scalars", "int32", "bool", "bool array", "bool lists", "dict"],
)
def test_indices_and_booleans_however_they_are_stored(tmp_path: Path, rows: Any) -> None:
    """What torch.nonzero and `mask[layer]` give, and what json writes."""
    assert heads(read(tmp_path, rows, Rules(lists="kept", lists_of="head"))) == KEPT_HEADS


def test_booleans_that_say_what_is_removed(tmp_path: Path) -> None:
    content = {str(layer): row for layer, row in enumerate((1 - ones(KEPT_HEADS, 6)).bool().tolist())}
    assert heads(read(tmp_path, {"removed": {"heads": content}}, name="m.json")) == KEPT_HEADS


def test_lists_of_another_unit(tmp_path: Path) -> None:
    found = read(tmp_path, {"0": [3], "2": [0, 1]}, Rules(lists="removed", lists_of="dim_head"), "m.json")
    assert [layer["dim_head"] for layer in found.kept] == [(0, 1, 2), (0, 1, 2, 3), (2, 3)]


# --- shared keys and values ---


def test_heads_of_groups_stay_as_many_in_each_any_of_them(tmp_path: Path) -> None:
    found = read(tmp_path, {"pruned_heads": {"0": [0, 3, 4]}}, name="config.json", whole=GROUPED)
    assert found.kept[0]["head"] == (1, 2, 5)
    assert found.kept[0]["kv_group"] == (0, 1, 2)


def test_a_group_whose_heads_are_all_removed_is_removed(tmp_path: Path) -> None:
    found = read(tmp_path, {"head_z": ones([(0, 1, 4, 5), (2, 4), HEADS], 6)}, whole=GROUPED)
    assert [layer["kv_group"] for layer in found.kept] == [(0, 2), (1, 2), (0, 1, 2)]
    assert heads(found) == [(0, 1, 4, 5), (2, 4), HEADS]


def test_a_removed_group_takes_its_heads_along(tmp_path: Path) -> None:
    for content, rules in (
        ({"0": [1]}, Rules(lists="removed", lists_of="kv_group")),
        ({"removed": {"kv_groups": {"0": [1]}}}, Rules()),
    ):
        found = read(tmp_path, content, rules, "m.json", GROUPED)
        assert heads(found) == [(0, 1, 4, 5), HEADS, HEADS]
        assert found.kept[0]["kv_group"] == (0, 2)


# --- several files, several passes ---


def test_files_of_several_forms_in_one_pass_all_apply(tmp_path: Path) -> None:
    paths = [
        saved(tmp_path / "config.json", {"pruned_heads": {"0": [0]}}),
        saved(tmp_path / "zs.pt", {"intermediate_z": ones([(1, 2), DIMS, DIMS], 8)}),
        saved(tmp_path / "ours.pt", {"heads_z": ones([(0, 1), (2,), HEADS], 6)}),
    ]
    for order in (paths, paths[::-1]):
        found = read_masks(order, WHOLE)
        assert (heads(found), dims(found)) == ([(1,), (2,), HEADS], [(1, 2), DIMS, DIMS])


def test_others_masks_count_the_input_model_whatever_has_been_cut_since(tmp_path: Path) -> None:
    path = saved(tmp_path / "config.json", {"pruned_heads": {"0": [1, 5], "2": [0]}})
    entering = WHOLE.then({(0, "head"): [True, True, False, True, False, True], (1, "attention"): [False]})
    found = read_masks([path], WHOLE, entering)
    assert heads(found) == [(0, 3), None, (1, 2, 3, 4, 5)]


def test_layers_of_unlike_widths(tmp_path: Path) -> None:
    whole = Kept([{"head": (0, 1), "dim_head": (0,)}, {"head": (0, 1, 2), "dim_head": (0,)}])
    found = read(tmp_path, {"head_z": torch.tensor([[0, 1, 0], [1, 0, 1]])}, whole=whole)
    assert heads(found) == [(1,), (0, 2)]
    assert heads(read(tmp_path, [[1], [0, 2]], Rules(lists="kept", lists_of="head"), "m.json", whole)) == [(1,), (0, 2)]
