"""Which row is which sublayer, in models with holes, cut before, or cut by another file of the same pass."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sprunec.errors import InputError
from sprunec.families.base_config import everything
from sprunec.families.cpm_ant.blocks import example_inputs
from sprunec.mask_files.reading import read_masks
from sprunec.masks.layer_masks import Matched
from sprunec.rewrite.gating import mask
from sprunec.rewrite.trace import trace_blocks
from sprunec.units import Kept
from tests.conftest import kept_layer, random_batch, tiny_config, tiny_model

# 12 layers: attention in 8 of them, feed-forward in 7
HOLES = [[i in (0, 3, 4, 9), i in (1, 2, 4, 7, 11)] for i in range(12)]
HOLED = {"num_layers": 12, "mask_modules": HOLES}
WHOLE = everything(tiny_config(**HOLED))
ATTENTION = [1, 2, 5, 6, 7, 8, 10, 11]
FEED_FORWARD = [0, 3, 5, 6, 8, 9, 10]


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def layer_file(path: Path, attention: list[int], feed_forward: list[int]) -> Path:
    values = {"self_att_layer_z": attention, "cross_att_layer_z": [], "ffn_layer_z": feed_forward}
    return saved(path, {key: torch.tensor(row, dtype=torch.float32) for key, row in values.items()})


def without(kept: Kept, attention: set[int], feed_forward: set[int]) -> Kept:
    gone = {(index, "attention"): [False] for index in attention}
    return kept.then(gone | {(index, "feed_forward"): [False] for index in feed_forward})


def heads(rows: int) -> Tensor:
    """(rows, 4); row i keeps head i mod 4 alone."""
    values = torch.zeros(rows, 4)
    values[range(rows), [row % 4 for row in range(rows)]] = 1
    return values


def kept_heads(found: Matched) -> dict[int, tuple[int, ...]]:
    return {index: layer["head"] for index, layer in enumerate(found.kept) if "head" in layer}


def complaint(paths: list[Path], entering: Kept | None = None) -> tuple[str, str]:
    with pytest.raises(InputError) as caught:
        read_masks(paths, WHOLE, entering)
    (diagnostic,) = caught.value.diagnostics
    return diagnostic.file, diagnostic.message


# --- rows ---


def test_row_i_is_the_i_th_sublayer_that_is_there(tmp_path: Path) -> None:
    found = read_masks([saved(tmp_path / "h.pt", {"heads_z": heads(8)})], WHOLE)
    assert kept_heads(found) == {layer: (rank % 4,) for rank, layer in enumerate(ATTENTION)}


@pytest.mark.parametrize("rank", range(8))
def test_closing_a_heads_row_changes_its_own_layer_alone(rank: int, tmp_path: Path) -> None:
    """The masked logits are those of the whole model without this layer's heads, by the weights."""
    rows = torch.ones(8, 4)
    rows[rank, 1:] = 0
    found = read_masks([saved(tmp_path / "h.pt", {"heads_z": rows})], WHOLE)
    layer = ATTENTION[rank]
    assert [i for i in range(12) if found.kept[i] != WHOLE[i]] == [layer]
    model, batch = tiny_model(**HOLED).double(), random_batch()
    whole = model(**batch)[0].detach()
    with torch.no_grad():
        model.encoder.layers[layer].self_att.self_attention.attention_out.weight[:, 6:] = 0
        by_hand = model(**batch)[0]
    masked_model = tiny_model(**HOLED).double()
    mask(masked_model, trace_blocks(masked_model, example_inputs(tiny_config(**HOLED))), found.kept)
    with torch.no_grad():
        masked = masked_model(**batch)[0]
    assert (masked - by_hand).abs().max() < 1e-12
    assert (masked - whole).abs().max() > 1e-4


@pytest.mark.parametrize("rank", range(7))
def test_closing_a_feed_forward_row_changes_its_own_layer_alone(rank: int, tmp_path: Path) -> None:
    values = [int(i != rank) for i in range(7)]
    found = read_masks([layer_file(tmp_path / "l.pt", [1] * 8, values)], WHOLE)
    assert found.kept == without(WHOLE, set(), {FEED_FORWARD[rank]})


def test_removing_layer_1_leaves_layers_10_and_11(tmp_path: Path) -> None:
    """Names that begin alike are not one layer."""
    removed = [[i == 1, False] for i in range(12)]
    found = read_masks([saved(tmp_path / "m.pt", removed)], WHOLE)
    assert found.kept == without(WHOLE, {1}, set())


# --- rows of a model that has been cut ---


def test_rows_may_count_what_the_pass_is_given(tmp_path: Path) -> None:
    entering = without(WHOLE, {2, 7}, {5})
    found = read_masks([saved(tmp_path / "h.pt", {"heads_z": heads(6)})], WHOLE, entering)
    assert kept_heads(found) == {layer: (rank % 4,) for rank, layer in enumerate([1, 5, 6, 8, 10, 11])}
    found = read_masks([saved(tmp_path / "h.pt", {"heads_z": heads(8)})], WHOLE, entering)
    assert kept_heads(found) == {layer: (rank % 4,) for rank, layer in enumerate(ATTENTION) if layer not in (2, 7)}


@pytest.mark.parametrize("order", itertools.permutations(range(3)))
@pytest.mark.parametrize("counted", ["kept", "all"])
def test_coarse_and_fine_masks_in_one_pass_in_any_order(counted: str, order: tuple[int, ...], tmp_path: Path) -> None:
    """BMCook's fine masks have a row for every sublayer that the coarse mask keeps; ours for every one there is."""
    attention, feed_forward = [1, 0, 1, 1, 0, 1, 1, 1], [1, 1, 0, 1, 1, 1, 0]
    present = [layer for layer, keep in zip(ATTENTION, attention, strict=True) if keep]
    fed = [layer for layer, keep in zip(FEED_FORWARD, feed_forward, strict=True) if keep]
    dims = torch.zeros(5 if counted == "kept" else 7, 40)
    dims[range(len(dims)), range(len(dims))] = 1
    paths = [
        layer_file(tmp_path / "coarse.pt", attention, feed_forward),
        saved(tmp_path / "heads.pt", {"heads_z": heads(6 if counted == "kept" else 8)}),
        saved(tmp_path / "dims.pt", {"dimff_z": dims}),
    ]
    found = read_masks([paths[index] for index in order], WHOLE)
    ranks = {layer: (present if counted == "kept" else ATTENTION).index(layer) % 4 for layer in present}
    assert kept_heads(found) == {layer: (rank,) for layer, rank in ranks.items()}
    wide = {i: layer["dim_ff"] for i, layer in enumerate(found.kept) if "dim_ff" in layer}
    assert wide == {layer: ((fed if counted == "kept" else FEED_FORWARD).index(layer),) for layer in fed}


def test_rows_that_count_nothing_here_are_told_with_all_counts(tmp_path: Path) -> None:
    entering = without(WHOLE, {2, 7}, set())
    coarse = layer_file(tmp_path / "c.pt", [1, 1, 1, 0, 1, 1], [1] * 7)
    fine = saved(tmp_path / "h.pt", {"heads_z": torch.ones(4, 4)})
    assert complaint([fine, coarse], entering) == (
        str(fine),
        "heads_z has 4 rows; the plan's input model has 8, the model at this pass has 6, "
        "the model that the layer masks leave has 5 such sublayers",
    )
    assert complaint([fine])[1] == "heads_z has 4 rows; the plan's input model has 8 such sublayers"


def test_masks_of_the_same_units_in_two_files_both_apply(tmp_path: Path) -> None:
    first, second = torch.tensor([[1, 1, 0, 0]] * 8), torch.tensor([[0, 1, 1, 0]] * 8)
    paths = [saved(tmp_path / "a.pt", {"heads_z": first}), saved(tmp_path / "b.pt", {"heads_z": second})]
    assert set(kept_heads(read_masks(paths, WHOLE)).values()) == {(1,)}


# --- columns ---


def narrowed(kept: Kept, heads: tuple[int, ...], dim_ff: tuple[int, ...]) -> Kept:
    here = {"head": heads, "dim_ff": dim_ff}
    return Kept({unit: here.get(unit, indices) for unit, indices in layer.items()} for layer in kept)


def test_columns_are_the_input_models_units_or_those_left_at_this_pass(tmp_path: Path) -> None:
    entering = narrowed(WHOLE, (0, 2, 3), (4, 30))
    wide = saved(tmp_path / "wide.pt", {"heads_z": torch.tensor([[1, 1, 0, 1]] * 8)})
    narrow = saved(tmp_path / "narrow.pt", {"heads_z": torch.tensor([[0, 1, 1]] * 8)})
    assert set(kept_heads(read_masks([wide], WHOLE, entering)).values()) == {(0, 3)}
    found = read_masks([narrow], WHOLE, entering)
    assert set(kept_heads(found).values()) == {(2, 3)}
    assert found.masks[(1, "head")].tolist() == [False, False, True, True]
    dims = saved(tmp_path / "dims.pt", {"dimff_z": torch.tensor([[0, 1]] * 7)})
    assert {layer.get("dim_ff") for layer in read_masks([dims], WHOLE, entering).kept} == {None, (30,)}


def test_columns_that_count_nothing_here_are_told_with_both_counts(tmp_path: Path) -> None:
    path = saved(tmp_path / "h.pt", {"heads_z": torch.ones(8, 5)})
    message = (
        "heads_z has 5 columns; the plan's input model has 4, the model at this pass has 3 units in its widest layer"
    )
    assert complaint([path], narrowed(WHOLE, (0, 2, 3), (1,)))[1] == message
    assert complaint([path])[1] == "heads_z has 5 columns; the plan's input model has 4 units in its widest layer"


def test_a_unit_beyond_its_layers_width_is_named(tmp_path: Path) -> None:
    whole = Kept((kept_layer((0, 1), (0,), (0,)), kept_layer((0, 1, 2), (0,), (0,))))
    path = saved(tmp_path / "h.pt", {"heads_z": torch.tensor([[1, 0, 1], [1, 0, 1]])})
    with pytest.raises(InputError, match="heads_z keeps unit 2 of layer 0, which has 2"):
        read_masks([path], whole)


# --- layer masks that made the model what it is ---


def test_a_layer_mask_that_fits_what_is_there_is_applied(tmp_path: Path) -> None:
    entering = without(WHOLE, {2, 7}, {5})
    found = read_masks([layer_file(tmp_path / "l.pt", [0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0])], WHOLE, entering)
    assert (found.kept, found.notes) == (without(entering, {1, 11}, {10}), ())
    whole_rows = layer_file(tmp_path / "w.pt", [0, 1, 1, 1, 1, 1, 1, 1], [1] * 7)
    assert read_masks([whole_rows], WHOLE, entering).kept == without(entering, {1}, set())


def test_a_layer_mask_whose_ones_are_what_is_left_was_applied_already(tmp_path: Path) -> None:
    """BMCook's guide names the coarse mask again in every later stage: here what had 10 and 11 has 8 and 7 since."""
    path = layer_file(tmp_path / "coarse.pt", [1, 0, 0, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1])
    fine = saved(tmp_path / "h.pt", {"heads_z": heads(8)})
    for paths in ([path, fine], [fine, path]):
        found = read_masks(paths, WHOLE)
        assert kept_heads(found) == {layer: (rank % 4,) for rank, layer in enumerate(ATTENTION)}
        assert found.notes == (
            "coarse.pt was applied already: it keeps 8 and 7 of 10 and 11 sublayers, and so many are left",
        )


def test_a_layer_mask_of_the_input_model_that_an_earlier_pass_has_applied_changes_nothing(tmp_path: Path) -> None:
    path = layer_file(tmp_path / "coarse.pt", [1, 0, 1, 1, 1, 1, 1, 1], [1] * 7)
    entering = without(WHOLE, {2}, set())
    found = read_masks([path], WHOLE, entering)
    assert found.kept == entering
    assert found.notes == ("coarse.pt was applied already: every sublayer that it removes is gone",)


@pytest.mark.parametrize(
    ("attention", "feed_forward", "message"),
    [
        ([1] * 7 + [0] * 3, [1] * 7 + [0] * 4, "10 and 11 rows and keeps 7 and 7"),
        ([1] * 7 + [0], [1] * 7 + [0] * 4, "8 and 11 rows and keeps 7 and 7"),
        ([1] * 8 + [0] * 2, [0] * 7, "10 and 7 rows and keeps 8 and 0"),
        ([1] * 13, [1] * 7, "13 and 7 rows"),
    ],
)
def test_a_layer_mask_that_neither_fits_nor_was_applied_is_told_with_both_counts(
    attention: list[int], feed_forward: list[int], message: str, tmp_path: Path
) -> None:
    """Attention and feed-forward of one file are in the same case, or it is no mask of this model."""
    told = complaint([layer_file(tmp_path / "l.pt", attention, feed_forward)])[1]
    assert told.startswith("self_att_layer_z and ffn_layer_z: the file has " + message)
    assert told.endswith("; the plan's input model has 8 and 7 such sublayers")


def test_mask_modules_of_another_depth_are_told_with_both_counts(tmp_path: Path) -> None:
    told = complaint([saved(tmp_path / "m.pt", [[True, False]] * 10)])[1]
    assert told == (
        "mask_modules: the file has 10 and 10 rows and keeps 0 and 10 of them; "
        "the model with all its layers has 12 and 12 such sublayers"
    )


def test_the_plugins_blocks_count_emptied_layers_beside_sublayers_that_do_not(tmp_path: Path) -> None:
    blocks, attention = torch.ones(12, 1), torch.ones(8, 1)
    blocks[5], attention[0] = 0, 0
    found = read_masks([saved(tmp_path / "p.pt", {"transformer": blocks.half(), "att": attention.half()})], WHOLE)
    assert found.kept == without(WHOLE, {1, 5}, {5})
