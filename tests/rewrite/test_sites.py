"""What can be cut, what goes with it, and what cannot and why."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprunec.families.base_config import unit_cost
from sprunec.families.cpm_ant.blocks import build, example_inputs
from sprunec.rewrite import gating, surgery
from sprunec.rewrite.ops.groups import Groups
from sprunec.rewrite.sites import factors
from sprunec.rewrite.trace import TracedBlock, trace, trace_blocks
from sprunec.units import Cut
from tests.conftest import tiny_config
from tests.helpers.strange import Strange, Unit


def cpm_blocks(**changes: object) -> tuple[TracedBlock, ...]:
    with torch.device("meta"):
        model = build(tiny_config(**changes))
    return trace_blocks(model, example_inputs(tiny_config(**changes)))


class Mlp(nn.Module):
    """A residual of one hidden width, bent by `kind`."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.up, self.mid, self.down = nn.Linear(8, 12), nn.Linear(12, 10), nn.Linear(10, 8)
        self.short = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.up(x))
        if self.kind == "two widths":
            return x + self.down(F.relu(self.mid(y)))
        if self.kind == "no rule":
            y = torch.cumsum(y, -1)
        return x + self.short(y)


class Stack(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


def traced_mlp(kind: str) -> TracedBlock:
    return trace(Stack(Mlp(kind)), torch.zeros(2, 5, 8))[0]


def test_the_sites_of_a_cpm_ant_block() -> None:
    block = cpm_blocks()[1]
    place = "self_att.self_attention"
    heads = {(f"{place}.project_{x}.weight", 0) for x in "qkv"} | {(f"{place}.attention_out.weight", 1)}
    wide = {("ffn.ffn.w_in.w_0.weight", 0), ("ffn.ffn.w_in.w_1.weight", 0), ("ffn.ffn.w_out.weight", 1)}
    assert {unit: set(site.tensors) for unit, site in block.sites.items()} == {
        "head": heads,
        "dim_head": heads,
        "dim_ff": wide,
    }
    assert {unit: site.size for unit, site in block.sites.items()} == {"head": 4, "dim_head": 6, "dim_ff": 40}
    assert block.notes == ()


def test_what_one_unit_weighs_adds_up_to_its_sublayer() -> None:
    config = tiny_config()
    for block in cpm_blocks():
        each = {unit: site.size * site.parameters_each for unit, site in block.sites.items()}
        assert each["head"] == each["dim_head"] == unit_cost(config, block.index, "attention") - config.dim_model
        assert each["dim_ff"] == unit_cost(config, block.index, "feed_forward") - config.dim_model
        for unit, site in block.sites.items():
            assert site.parameters_each == unit_cost(config, block.index, unit)


def test_sublayers_are_found_with_the_tensors_that_only_they_use() -> None:
    residuals = cpm_blocks()[0].forward.residuals
    assert [residual.kind for residual in residuals] == ["attention", "feed_forward"]
    assert all(name.startswith("self_att.") for name in residuals[0].tensors)
    assert len(residuals[0].tensors) == 5
    assert all(name.startswith("ffn.") for name in residuals[1].tensors)
    assert len(residuals[1].tensors) == 4


def test_absent_sublayers_have_no_sites() -> None:
    blocks = cpm_blocks(mask_modules=[[True, False], [False, True], [True, True]])
    assert [block.sublayers() for block in blocks] == [("feed_forward",), ("attention",), ()]
    assert [sorted(block.sites) for block in blocks] == [["dim_ff"], ["dim_head", "head"], []]


def test_both_methods_name_the_same_groups_of_the_same_tensors() -> None:
    block = cpm_blocks()[0]
    for site in block.sites.values():
        for method, program in block.programs.items():
            for group in site.groups[method]:
                assert set(program.groups.holding(group)) <= set(site.tensors)
                assert program.groups.sizes[group] == site.size
    assert set(block.programs) == {"forward", "forward_cached"}


@pytest.mark.parametrize("fused", ["chunk", "view", "split"])
def test_fused_projections_are_one_site_with_their_biases(fused: str) -> None:
    block = trace(Strange(fused).eval(), torch.zeros(2, 7, dtype=torch.long))[0]
    expected = {("qkv.weight", 0), ("qkv.bias", 0), ("back.weight", 1)}
    assert set(block.sites["head"].tensors) == set(block.sites["dim_head"].tensors) == expected
    assert set(block.sites["dim_ff"].tensors) == {("up.weight", 0), ("up.bias", 0), ("down.weight", 1)}
    assert (block.sites["head"].size, block.sites["dim_head"].size, block.sites["dim_ff"].size) == (4, 6, 40)


def test_an_op_without_a_rule_is_named_in_the_notes() -> None:
    block = traced_mlp("no rule")
    assert "dim_ff" not in block.sites
    assert block.notes == ("parts.0: dim_ff cannot be cut: it comes out of cumsum",)


def test_two_hidden_widths_in_a_row_are_not_one_site() -> None:
    block = traced_mlp("two widths")
    assert block.notes == ("parts.0: dim_ff cannot be cut: it has axes of different sizes, [10, 12]",)


def test_tensors_that_layers_share_cannot_be_cut_and_the_notes_say_so() -> None:
    model = Strange()
    model.units[2].up.weight = model.units[0].up.weight
    blocks = trace(model.eval(), torch.zeros(2, 7, dtype=torch.long))
    assert ["dim_ff" in block.sites for block in blocks] == [False, True, False]
    assert blocks[2].notes == ("units.2: dim_ff cannot be cut: other blocks use the same tensor",)
    assert all({"head", "dim_head"} <= block.sites.keys() for block in blocks)


def test_a_width_that_leaves_the_block_is_no_site() -> None:
    class Leaking(Mlp):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = F.relu(self.up(x))
            return x + self.short(y), y

    model = Stack(Leaking("leaks"))
    (block,) = trace_blocks(model, {"parts.0": {"forward": (torch.zeros(2, 5, 8),)}})
    assert block.notes == ("parts.0: dim_ff cannot be cut: it leaves the block",)


def test_two_attentions_in_one_block_are_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.o = nn.Linear(8, 8), nn.Linear(8, 8)

        def attend(self, x: Tensor) -> Tensor:
            q = self.q(x).unflatten(-1, (2, 4)).transpose(1, 2)
            return self.o(F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.attend(x)
            return x + self.attend(x)

    (block,) = trace(Stack(Twice()), torch.zeros(2, 5, 8))
    assert block.sites == {}
    assert block.notes == ("parts.0 has 2 attention sublayers; none is cut",)


def test_factors_count_what_lies_around_an_axis() -> None:
    groups = Groups({"context": ((0,), (1, 2, 3))}, {}, {0: 5, 1: 2, 2: 4, 3: 6}, {})
    assert factors(groups, "context", 1, 1) == (1, 24)
    assert factors(groups, "context", 1, 2) == (2, 6)
    assert factors(groups, "context", 1, 3) == (8, 1)


class AddedTogether(Unit):
    """Attention and MLP of one norm, summed before they are added."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        normed = self.norm_one(x)
        query, key, value = self.qkv(normed).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return x + (self.back(mixed.transpose(1, 2).flatten(2)) + self.down(self.act(self.up(normed))))


def test_attention_and_mlp_that_are_summed_first_are_two_sublayers() -> None:
    model = Strange(depth=1).eval()
    model.units[0] = AddedTogether(24, 4, 40, "chunk").eval()
    ids = torch.randint(0, 50, (2, 7))
    (block,) = trace(model, ids)
    assert block.sublayers() == ("attention", "feed_forward")
    assert set(block.sites) == {"head", "dim_head", "dim_ff"}
    assert block.notes == ()
    every = {unit: tuple(range(site.size)) for unit, site in block.sites.items()}
    for kept in (every | {"head": (1,), "dim_ff": (0, 7)}, {"dim_ff": every["dim_ff"]}, {"head": (0, 2)}, {}):
        masked, small = copy.deepcopy(model), copy.deepcopy(model)
        gating.mask(masked, trace(masked, ids), Cut([kept]))
        surgery.rewrite(small, trace(small, ids), Cut([kept]))
        assert (masked(ids) - small(ids)).abs().max() < 1e-5
        assert (masked(ids) - model(ids)).abs().max() > 1e-3


class ThreeSublayers(Unit):
    """A second feed-forward behind the first one."""

    def __init__(self, inner: int) -> None:
        super().__init__(24, 4, 40, "chunk")
        self.rise, self.fall = nn.Linear(24, inner), nn.Linear(inner, 24)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = super().forward(x, mask)
        return x + self.fall(F.gelu(self.rise(x)))


@pytest.mark.parametrize("inner", [16, 40])
def test_three_sublayers_are_cut_where_their_widths_are_alike(inner: int) -> None:
    model, ids = Strange(depth=1).eval(), torch.randint(0, 50, (2, 7))
    model.units[0] = ThreeSublayers(inner).eval()
    (block,) = trace(model, ids)
    assert block.sublayers() == ("attention", "feed_forward", "feed_forward")
    assert ("dim_ff" in block.sites) == (inner == 40)
    if inner == 16:
        assert block.notes == ("units.0: dim_ff cannot be cut: it has axes of different sizes, [16, 40]",)
    every = {unit: tuple(range(site.size)) for unit, site in block.sites.items()}
    some = {"head": (0, 3)} | ({"dim_ff": (2, 30)} if inner == 40 else {"dim_ff": tuple(range(40))})
    for kept in (every | some, {"head": (0, 1, 2, 3)}, {"dim_ff": tuple(range(40))}):
        masked, small = copy.deepcopy(model), copy.deepcopy(model)
        gating.mask(masked, trace(masked, ids), Cut([kept]))
        surgery.rewrite(small, trace(small, ids), Cut([kept]))
        assert (masked(ids) - small(ids)).abs().max() < 1e-5
        assert (masked(ids) - model(ids)).abs().max() > 1e-3


class SummedBesides(Unit):
    """What is added together with the attention is of the same norm, and no feed-forward by itself."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
        return x + self.back(mixed) * self.down(self.act(self.up(x)))


def test_an_mlp_that_scales_the_attention_is_said_not_to_be_cut() -> None:
    model = Strange(depth=1).eval()
    model.units[0] = SummedBesides(24, 4, 40, "chunk").eval()
    (block,) = trace(model, torch.randint(0, 50, (2, 7)))
    assert block.sublayers() == ("attention",)
    assert set(block.sites) == {"head", "dim_head"}
    assert block.notes == ("units.0: what is added together with the attention cannot be cut by itself",)


@pytest.mark.parametrize("narrow", ["dim_head", "num_heads", "dim_ff"])
def test_units_that_are_the_last_of_their_kind_are_still_sites(narrow: str) -> None:
    config = tiny_config(**{narrow: 1})
    (block, *_) = trace_blocks(build(config), example_inputs(config))
    sizes = {"head": config.num_heads, "dim_head": config.dim_head, "dim_ff": config.dim_ff}
    assert {unit: site.size for unit, site in block.sites.items()} == sizes
    each = {"head": 4 * config.dim_head * 24, "dim_head": 4 * config.num_heads * 24, "dim_ff": 3 * 24}
    assert {unit: site.parameters_each for unit, site in block.sites.items()} == each
