"""More queries than keys and values: traced to an end, cut where it is exact, and said why where it is not."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprunec.errors import TraceError
from sprunec.rewrite import gating, surgery
from sprunec.rewrite.recipe import make_recipe
from sprunec.rewrite.trace import trace
from sprunec.units import Cut
from tests.conftest import kept_layer

HEADS, DIM_HEAD = 8, 6
EVERY = tuple(range(DIM_HEAD))


class Grouped(nn.Module):
    """Attention of 8 query heads over fewer key and value heads, in the ways that people write it."""

    def __init__(self, style: str, groups: int) -> None:
        super().__init__()
        self.style, self.groups = style, groups
        self.norm_one, self.norm_two = nn.LayerNorm(24), nn.LayerNorm(24)
        self.q, self.out = nn.Linear(24, HEADS * DIM_HEAD), nn.Linear(HEADS * DIM_HEAD, 24)
        self.k, self.v = nn.Linear(24, groups * DIM_HEAD), nn.Linear(24, groups * DIM_HEAD)
        self.up, self.down = nn.Linear(24, 40), nn.Linear(40, 24)

    def attend(self, x: Tensor) -> Tensor:
        query = self.q(x).unflatten(-1, (HEADS, DIM_HEAD)).transpose(1, 2)
        key, value = (p(x).unflatten(-1, (self.groups, DIM_HEAD)).transpose(1, 2) for p in (self.k, self.v))
        if self.style == "enable_gqa":
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        elif self.style == "five dims":
            query, (key, value) = query.unflatten(1, (self.groups, -1)), (x[:, :, None] for x in (key, value))
            scores = query @ key.transpose(-2, -1) * DIM_HEAD**-0.5
            mixed = (F.softmax(scores, dim=-1) @ value).flatten(1, 2)
        elif self.style == "broadcast":
            mixed = F.softmax(query @ key.transpose(-2, -1) * DIM_HEAD**-0.5, dim=-1) @ value
        else:
            key, value = self.repeated(key), self.repeated(value)
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def repeated(self, x: Tensor) -> Tensor:
        if self.style == "repeat_interleave":
            return x.repeat_interleave(HEADS // self.groups, dim=1)
        if self.style == "repeat":
            return x.repeat(1, HEADS // self.groups, 1, 1)
        return x[:, :, None].expand(-1, -1, HEADS // self.groups, -1, -1).flatten(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm_one(x))
        return x + self.down(F.gelu(self.up(self.norm_two(x))))


class Model(nn.Module):
    def __init__(self, style: str, groups: int) -> None:
        super().__init__()
        self.words, self.blocks = nn.Embedding(50, 24), nn.ModuleList(Grouped(style, groups) for _ in range(2))
        for parameter in self.blocks.parameters():
            nn.init.normal_(parameter, std=0.3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for block in self.blocks:
            x = block(x)
        return x


IDS = torch.arange(14).reshape(2, 7)


@torch.no_grad()
def cut_difference(model: Model, kept: dict[str, tuple[int, ...]]) -> float:
    """Between masked and cut, once it is sure that the cut matters."""
    masked, small = copy.deepcopy(model), copy.deepcopy(model)
    gating.mask(masked, trace(masked, IDS), Cut([kept] * 2))
    surgery.rewrite(small, trace(small, IDS), Cut([kept] * 2))
    wanted = masked(IDS)
    assert (model(IDS) - wanted).abs().max() > 0.01
    return float((small(IDS) - wanted).abs().max())


STYLES = ("enable_gqa", "repeat_interleave", "expand", "five dims")
ALL = {"head": tuple(range(HEADS)), "dim_head": EVERY, "dim_ff": tuple(range(40))}


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("style", STYLES)
def test_groups_are_cut_in_all_projections_and_heads_in_queries_and_output(style: str, groups: int) -> None:
    torch.manual_seed(0)
    model = Model(style, groups).eval()
    for block in trace(model, IDS):
        sites = block.sites
        assert {unit: site.size for unit, site in sites.items()} == {
            "kv_group": groups, "head": HEADS, "dim_head": DIM_HEAD, "dim_ff": 40
        }  # fmt: skip
        assert {name for name, _ in sites["kv_group"].tensors} == {
            "q.weight", "q.bias", "k.weight", "k.bias", "v.weight", "v.bias", "out.weight"
        }  # fmt: skip
        assert {name for name, _ in sites["head"].tensors} == {"q.weight", "q.bias", "out.weight"}
        assert sites["head"].parameters_each == 2 * 24 * DIM_HEAD + DIM_HEAD
        assert sites["kv_group"].parameters_each == (2 * HEADS + 2 * groups) * 24 * DIM_HEAD // groups + DIM_HEAD * (
            HEADS // groups + 2
        )
        assert block.notes == ()


@pytest.mark.parametrize("style", STYLES)
def test_every_group_may_keep_other_heads_but_as_many(style: str) -> None:
    torch.manual_seed(0)
    model = Model(style, 2).eval()
    assert cut_difference(model, ALL | {"head": (0, 3, 5, 6)}) < 5e-6
    assert cut_difference(model, ALL | {"head": (2, 3, 6, 7)}) < 5e-6
    assert cut_difference(model, ALL | {"kv_group": (1,)}) < 5e-6
    assert cut_difference(model, ALL | {"kv_group": (0,), "head": (1, 2, 4), "dim_head": (0, 2, 5)}) < 5e-6
    message = "blocks.0: its groups would keep 1 and 2 heads; each must keep as many, and one at least"
    with pytest.raises(TraceError, match=message):
        make_recipe(trace(model, IDS), Cut([ALL | {"head": (0, 3, 5)}] * 2))


def test_heads_of_tiled_keys_are_said_not_to_be_cut() -> None:
    torch.manual_seed(0)
    model = Model("repeat", 4).eval()
    for index, block in enumerate(trace(model, IDS)):
        assert "head" not in block.sites
        assert block.fixed["head"] == HEADS
        assert f"blocks.{index}: head cannot be cut: it comes out of repeat" in block.notes
        assert block.sites["dim_ff"].size == 40
    with pytest.raises(TraceError, match="no head can be cut"):
        make_recipe(trace(model, IDS), Cut([kept_layer((0, 1), EVERY, tuple(range(40)))] * 2))
    assert cut_difference(model, kept_layer(tuple(range(HEADS)), EVERY, (0, 3, 17))) < 5e-6


@pytest.mark.parametrize("groups", [2, 4])
def test_head_dims_of_grouped_queries_are_cut_in_all_projections(groups: int) -> None:
    torch.manual_seed(0)
    model = Model("enable_gqa", groups).eval()
    tensors = {name for name, _ in trace(model, IDS)[0].sites["dim_head"].tensors}
    assert tensors == {"q.weight", "q.bias", "k.weight", "k.bias", "v.weight", "v.bias", "out.weight"}
    assert cut_difference(model, kept_layer(tuple(range(HEADS)), (0, 2, 5), (1, 2))) < 5e-6


@pytest.mark.parametrize("style", ["enable_gqa", "broadcast"])
def test_queries_of_one_key_are_cut_alone(style: str) -> None:
    torch.manual_seed(0)
    model = Model(style, 1).eval()
    block = trace(model, IDS)[0]
    assert {name for name, _ in block.sites["head"].tensors} == {"q.weight", "q.bias", "out.weight"}
    assert block.sites["head"].size == HEADS
    assert cut_difference(model, kept_layer((1, 4, 6), (0, 2, 5), (1, 2))) < 5e-6
