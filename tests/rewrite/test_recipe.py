"""A recipe is data: it cuts, composes, expands, and reads back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sprunec.checkpoint.writer import write_state
from sprunec.errors import TraceError
from sprunec.families.base_config import everything
from sprunec.families.cpm_ant.blocks import build, example_inputs
from sprunec.rewrite.keep import dim_indices
from sprunec.rewrite.ops.groups import Groups
from sprunec.rewrite.recipe import Recipe, make_recipe, read_origin, save_recipe
from sprunec.rewrite.trace import trace_blocks
from sprunec.units import Cut, Kept
from tests.conftest import kept_layer, tiny_config, tiny_model

FIRST = Kept(
    (
        kept_layer((0, 1, 3), tuple(range(6)), (3, 4, 9, 39)),
        kept_layer(None, None, tuple(range(0, 40, 3))),
        kept_layer((2, 3), (0, 2, 5), None),
    )
)
BOTH = Kept(
    (
        kept_layer((3,), (1, 5), (4, 39)),
        kept_layer(None, None, (6, 9)),
        kept_layer((2, 3), (2,), None),
    )
)


def cpm_recipe(kept: Kept, before: Kept | None = None) -> Recipe:
    """The recipe for `kept`, both in the input model's indices, of a model that has only `before` left."""
    config = tiny_config()
    before = everything(config) if before is None else before
    here = config.cut(everything(config), before)
    blocks = trace_blocks(build(here), example_inputs(here))
    return make_recipe(blocks, kept.inside(before))


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_head_is_rows_of_q_k_v_and_columns_of_the_output() -> None:
    recipe, state = cpm_recipe(FIRST), tiny_model().state_dict()
    place, rows = "encoder.layers.0.self_att.self_attention", [*range(12), *range(18, 24)]
    small = recipe.cut(state)
    for name in ("project_q", "project_k", "project_v"):
        assert torch.equal(small[f"{place}.{name}.weight"], state[f"{place}.{name}.weight"][rows])
    assert torch.equal(small[f"{place}.attention_out.weight"], state[f"{place}.attention_out.weight"][:, rows])
    assert small["position_bias.relative_attention_bias"] is state["position_bias.relative_attention_bias"]


def test_heads_and_their_dims_are_cut_as_a_product() -> None:
    recipe, state = cpm_recipe(FIRST), tiny_model().state_dict()
    name = "encoder.layers.2.self_att.self_attention.project_k.weight"
    assert recipe.slices[name] == {0: (12, 14, 17, 18, 20, 23)}
    assert torch.equal(recipe.cut(state)[name], state[name][[12, 14, 17, 18, 20, 23]])


def test_a_feed_forward_dim_is_a_row_of_both_inputs_and_a_column_of_the_output() -> None:
    recipe = cpm_recipe(FIRST)
    place = "encoder.layers.0.ffn.ffn"
    assert recipe.slices[f"{place}.w_in.w_0.weight"] == recipe.slices[f"{place}.w_in.w_1.weight"] == {0: (3, 4, 9, 39)}
    assert recipe.slices[f"{place}.w_out.weight"] == {1: (3, 4, 9, 39)}


def test_absent_sublayers_lose_every_tensor_with_their_norm() -> None:
    recipe, state = cpm_recipe(FIRST), tiny_model().state_dict()
    gone = {name for name in state if name.startswith(("encoder.layers.1.self_att.", "encoder.layers.2.ffn."))}
    assert len(gone) == 9
    assert set(recipe.removed) == gone
    assert recipe.cut(state).keys() == state.keys() - gone


def test_what_is_left_is_what_the_cut_config_builds() -> None:
    config = tiny_config()
    small = config.cut(everything(config), FIRST)
    cut = cpm_recipe(FIRST).cut(tiny_model().state_dict())
    assert {n: t.shape for n, t in cut.items()} == {n: t.shape for n, t in build(small).state_dict().items()}
    assert sum(tensor.numel() for tensor in cut.values()) == small.parameters()


def test_keeping_everything_is_an_empty_recipe() -> None:
    assert cpm_recipe(everything(tiny_config())) == Recipe({}, ())


def test_two_recipes_in_a_row_equal_the_one_made_at_once() -> None:
    first, later, at_once = cpm_recipe(FIRST), cpm_recipe(BOTH, before=FIRST), cpm_recipe(BOTH)
    state = tiny_model().state_dict()
    assert later != at_once
    assert equal(later.cut(first.cut(state)), at_once.cut(state))
    assert first.then(later) == at_once


def test_removing_later_forgets_earlier_slices() -> None:
    first, later = Recipe({"a": {0: (1, 2)}, "b": {0: (0,)}}, ("c",)), Recipe({"b": {1: (3,)}}, ("a",))
    assert first.then(later) == Recipe({"b": {0: (0,), 1: (3,)}}, ("c", "a"))


def test_expand_puts_values_back_and_keeps_what_was_cut() -> None:
    recipe, full = cpm_recipe(FIRST), tiny_model().state_dict()
    trained = {name: tensor + 1 for name, tensor in recipe.cut(full).items()}
    back = recipe.expand(full, trained)
    name = "encoder.layers.2.self_att.self_attention.project_k.weight"
    rows = torch.zeros(24, dtype=torch.bool).index_fill(0, torch.tensor([12, 14, 17, 18, 20, 23]), True)
    assert torch.equal(back[name], torch.where(rows[:, None], full[name] + 1, full[name]))
    assert equal(recipe.cut(back), trained)
    assert all(back[gone] is full[gone] for gone in recipe.removed)
    assert not torch.equal(back["input_embedding.weight"], full["input_embedding.weight"])


def test_expand_works_along_two_dims_at_once_and_leaves_its_inputs() -> None:
    recipe, full = Recipe({"w": {0: (2, 0), 1: (1,)}}), {"w": torch.zeros(3, 2)}
    for dtype, wider in ((torch.double, torch.double), (torch.bfloat16, torch.float32)):  # neither is rounded
        back = recipe.expand(full, {"w": torch.tensor([[5.0], [7.0]], dtype=dtype)})
        assert back["w"].tolist() == [[0, 7], [0, 0], [0, 5]]
        assert back["w"].dtype == wider
        assert full["w"].abs().sum() == 0


def test_a_recipe_cuts_optimizer_moments_like_weights() -> None:
    model, recipe = tiny_model(), cpm_recipe(FIRST)
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.square().sum() for p in model.parameters()).backward()
    optimizer.step()
    moments = {name: optimizer.state[p]["exp_avg"] for name, p in model.named_parameters()}
    cut = recipe.cut(moments)
    assert {n: m.shape for n, m in cut.items()} == {n: t.shape for n, t in recipe.cut(model.state_dict()).items()}
    name = "encoder.layers.0.ffn.ffn.w_out.weight"
    assert torch.equal(cut[name], moments[name][:, [3, 4, 9, 39]])
    assert equal(recipe.cut(recipe.expand(moments, cut)), cut)


def test_cut_parts_are_contiguous_copies_in_their_own_dtype() -> None:
    full = torch.arange(12.0).reshape(3, 4).to(torch.bfloat16)
    part = Recipe({"w": {1: (0, 3)}}).cut({"w": full})["w"]
    full.zero_()
    assert part.is_contiguous()
    assert part.dtype == torch.bfloat16
    assert part.tolist() == [[0, 3], [4, 7], [8, 11]]


def test_json_holds_runs_and_reads_back() -> None:
    recipe, state = cpm_recipe(FIRST), tiny_model().state_dict()
    written = recipe.to_dict({name: tuple(tensor.shape) for name, tensor in state.items()})
    read = Recipe.from_dict(json.loads(json.dumps(written)))
    assert read.slices == recipe.slices
    assert set(read.removed) == set(recipe.removed)
    entry = written["tensors"]["encoder.layers.0.ffn.ffn.w_out.weight"]
    assert entry == {"shape": [24, 40], "kept": {"1": [[3, 5], [9, 10], [39, 40]]}}
    assert written["tensors"]["input_embedding.weight"]["kept"] == "all"
    assert written["tensors"]["encoder.layers.2.ffn.layernorm_before_ffn.weight"]["kept"] is None


def test_runs_keep_an_order_that_is_not_ascending() -> None:
    recipe = Recipe({"w": {0: (5, 2, 3, 1)}})
    assert Recipe.from_dict(recipe.to_dict({"w": (6,)})) == recipe


def test_the_entries_of_a_product_follow_its_outer_factor() -> None:
    groups = Groups({}, {}, {0: 3, 1: 2, 2: 4}, {})
    assert dim_indices(groups, (0, 2), {0: (0, 2)}) == (0, 1, 2, 3, 8, 9, 10, 11)
    assert dim_indices(groups, (1, 2), {2: (1,)}) == (1, 5)
    assert dim_indices(groups, (0, 1, 2), {0: (2,), 2: (0, 3)}) == (16, 19, 20, 23)


def test_an_origin_reads_back_from_disk(tmp_path: Path) -> None:
    recipe, full = cpm_recipe(FIRST), tiny_model().state_dict()
    write_state(full, save_recipe(tmp_path, recipe, {name: tuple(tensor.shape) for name, tensor in full.items()}))
    read, tensors = read_origin(tmp_path)
    assert equal(tensors, dict(full))
    assert equal(read.cut(tensors), recipe.cut(full))


def test_more_units_than_there_are_is_an_error() -> None:
    blocks = trace_blocks(build(tiny_config()), example_inputs(tiny_config()))
    wrong = Cut((kept_layer((0, 4), tuple(range(6)), (0,)), *FIRST[1:]))
    with pytest.raises(TraceError, match=r"encoder\.layers\.0 has 4 head units, asked to keep number 4"):
        make_recipe(blocks, wrong)
