"""Which axes an op unites, keeps apart, or pins."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sprunec.rewrite.ops.compute_ops import RULES
from sprunec.rewrite.ops.flow import follow
from sprunec.rewrite.ops.groups import Groups


class Holder(nn.Module):
    """Two weights, and a body under test."""

    def __init__(self, body: Callable[[Holder, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.zeros(12, 8)), nn.Parameter(torch.zeros(8, 12))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def analyse(body: Callable[[Holder, Tensor], Tensor]) -> Groups:
    """The groups of `body` over x (2, 5, 8), first (12, 8) and second (8, 12)."""
    root = Holder(body)
    flow = follow(fx.Tracer().trace(root), root, (torch.empty(2, 5, 8, device="meta"),), RULES)
    return flow.finish()[0]


def hidden(groups: Groups) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The groups of first's rows and of second's columns."""
    return groups.tensors["first"][0], groups.tensors["second"][1]


KEEPING: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "method relu": lambda y: y.relu(),
    "in place": lambda y: y.mul_(2.0),
    "by itself": lambda y: y * torch.sigmoid(y),
    "scaled": lambda y: y / 3 + 1,
    "dropout": lambda y: F.dropout(y, 0.1),
    "there and back": lambda y: y.transpose(1, 2).transpose(2, 1),
    "permuted": lambda y: y.permute(2, 0, 1).permute(1, 2, 0),
    "viewed": lambda y: y.reshape(2, 5, 3, 4).flatten(2),
    "unflattened": lambda y: y.unflatten(-1, (4, 3)).reshape(2, 5, -1),
    "longer and shorter": lambda y: y.unsqueeze(1).squeeze(1),
    "indexed elsewhere": lambda y: y[:, 1:, :],
    "ellipsis": lambda y: y[..., None][..., 0],
    "cat elsewhere": lambda y: torch.cat([y, y], dim=1),
}


@pytest.mark.parametrize("name", KEEPING)
def test_ops_that_keep_an_axis_join_both_weights(name: str) -> None:
    groups = analyse(lambda m, x: F.linear(KEEPING[name](F.linear(x, m.first)), m.second))
    rows, columns = hidden(groups)
    assert rows == columns
    assert not set(rows) & set(groups.pinned)


PINNING: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "softmax": (lambda y: F.softmax(y, -1), "a softmax is taken over it"),
    "norm": (lambda y: F.layer_norm(y, (12,)), "a norm counts it"),
    "mean": (lambda y: y - y.mean(-1, keepdim=True), "mean counts it"),
    "steps": (lambda y: y[..., ::2].repeat(1, 1, 2), "it is taken in steps, as pairs of rotary positions are"),
    "uneven pieces": (lambda y: F.pad(torch.tensor_split(y, 5, -1)[0], (0, 9)), "it is split unevenly"),
    "mean of squares": (lambda y: y * y.pow(2).mean(-1, keepdim=True).rsqrt(), "a norm counts it"),
    "no rule": (lambda y: y.flip(-1), "it goes through flip"),
    "sorted": (lambda y: torch.cumsum(y, -1), "it goes through cumsum"),
}


@pytest.mark.parametrize("name", PINNING)
def test_ops_that_mix_or_count_an_axis_pin_it(name: str) -> None:
    op, reason = PINNING[name]
    groups = analyse(lambda m, x: F.linear(op(F.linear(x, m.first)), m.second))
    rows, _ = hidden(groups)
    assert {groups.pinned.get(group) for group in rows} == {reason}


SLICING: dict[str, tuple[Callable[[Tensor], Tensor], list[tuple[int, str]]]] = {
    "slice": (lambda y: F.pad(y[..., :5], (0, 7)), [(5, "it goes through pad"), (7, "")]),
    "narrow": (lambda y: F.pad(y.narrow(-1, 4, 6), (0, 6)), [(4, ""), (6, "it goes through pad"), (2, "")]),
    "split": (lambda y: F.pad(torch.split(y, 5, -1)[2], (0, 10)), [(10, ""), (2, "it goes through pad")]),
    "rows of a list": (lambda y: F.pad(y[..., [-2]], (0, 11)), [(10, ""), (1, "it goes through pad"), (1, "")]),
    "cat": (
        lambda y: torch.cat([y[..., :4], y[..., 4:]], -1),
        [
            (4, "its parts change places, as those of rotary pairs do"),
            (8, "its parts change places, as those of rotary pairs do"),
        ],
    ),
}


@pytest.mark.parametrize("name", SLICING)
def test_slices_make_a_dim_a_sum_of_which_each_term_goes_its_own_way(name: str) -> None:
    op, terms = SLICING[name]
    groups = analyse(lambda m, x: F.linear(op(F.linear(x, m.first)), m.second))
    ((whole,), _) = hidden(groups)
    assert whole not in groups.pinned
    assert [(groups.width(term), groups.pinned.get(term[0], "")) for term in groups.sums[whole]] == terms


def test_slices_of_slices_and_of_what_is_viewed_meet() -> None:
    def body(m: Holder, x: Tensor) -> Tensor:
        y = F.linear(x, m.first)
        front, back = y[..., :8].unflatten(-1, (4, 2)), y[..., 8:].unflatten(-1, (2, 2))
        return front[:, :, 1:3] * back

    groups = analyse(body)
    ((whole,), _) = groups.tensors["first"]
    (heads, inner), (two, same) = groups.sums[whole]
    assert [groups.width(term) for term in groups.sums[heads]] == [1, 2, 1]
    assert groups.sums[heads][1] == (two,)
    assert inner == same
    assert groups.inside((whole,)) >= {heads, inner, two}


def test_sums_of_the_same_terms_are_paired_term_by_term() -> None:
    def body(m: Holder, x: Tensor) -> Tensor:
        y, z = F.linear(x, m.first), F.linear(x, m.first * 2)
        return y[..., :5].sum() + z[..., 5:].sum() + (y + z).sum()

    groups = analyse(body)
    ((whole,), _) = groups.tensors["first"]
    assert [groups.width(term) for term in groups.sums[whole]] == [5, 7]


def test_repeated_and_expanded_dims_have_an_axis_of_their_own() -> None:
    def body(m: Holder, x: Tensor) -> Tensor:
        y = F.linear(x, m.first)
        again = y.repeat_interleave(3, dim=-1).unflatten(-1, (12, 3))
        return again + y[..., None].expand(-1, -1, -1, 3)

    groups = analyse(body)
    rows, _ = groups.tensors["first"]
    assert groups.values["repeat_interleave"][2][:-1] == rows
    assert groups.values["expand"][3] == groups.values["repeat_interleave"][2][-1:]


ONES: dict[str, Callable[[Tensor], Tensor]] = {
    "a new dim taken away": lambda y: y[:, :, None].squeeze(2) + y,
    "a mean's dim flattened": lambda y: y.mean(1, keepdim=True).flatten(1).unsqueeze(1) + y,
    "behind": lambda y: y[..., None].flatten(2) * y,
}


@pytest.mark.parametrize("name", ONES)
def test_a_1_folded_into_a_dim_beside_the_same_dim_without_it_ends(name: str) -> None:
    groups = analyse(lambda m, x: F.linear(ONES[name](F.linear(x, m.first)), m.second))
    rows, _ = hidden(groups)
    assert not [groups.pinned[group] for group in rows if groups.sizes[group] > 1 and group in groups.pinned]


UNKNOWN: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a tuple of no pieces": (lambda y: torch.topk(y, 12, -1)[0], "it comes out of topk"),
    "values and indices": (lambda y: torch.max(y, 1)[0], "it comes out of max"),
    "a kept dim by place": (lambda y: y - y.std(-1, False, True), "std counts it"),
    "the type of a tensor with more dims": (lambda y: y.type_as(y[None]), "it leaves the block"),
    "columns that are broadcast": (lambda y: torch.eq(y, y[None, None]), "it leaves the block"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_a_rule_does_not_know_keeps_the_shapes_right(name: str) -> None:
    op, reason = UNKNOWN[name]
    groups = analyse(lambda m, x: op(F.linear(x, m.first)))
    rows = groups.tensors["first"][0]
    assert reason in groups.pinned.values()
    assert math.prod(groups.sizes[group] for group in rows) == 12
    assert groups.pinned.keys() & set(rows)


def test_linear_unites_columns_with_what_it_sums() -> None:
    groups = analyse(lambda m, x: F.linear(x, m.first))
    assert groups.tensors["first"][1] == groups.values["x"][2]
    assert groups.pinned[groups.tensors["first"][0][0]] == "it leaves the block"


def test_a_broadcast_bias_goes_with_its_dim() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(5, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale + self.bias

    root = Biased()
    groups, _ = follow(fx.Tracer().trace(root), root, (torch.empty(2, 5, 8, device="meta"),), RULES).finish()
    assert groups.tensors["scale"][0] == groups.values["x"][2]
    assert groups.tensors["bias"][0] == groups.values["x"][1]
    assert groups.tensors["bias"][1] != groups.values["x"][2]


def test_chunks_share_what_lies_inside_them() -> None:
    def body(m: Holder, x: Tensor) -> Tensor:
        gate, value = F.linear(x, m.first).chunk(2, dim=-1)
        return gate * value

    groups = analyse(body)
    pieces, inside = groups.tensors["first"][0]
    assert groups.sizes[pieces] == 2
    assert groups.pinned[pieces] == "it counts the pieces of a split"
    assert groups.values["mul"][2] == (inside,)


def test_index_select_hands_its_axis_to_the_index() -> None:
    class Selecting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kept", torch.tensor([1, 3]))

        def forward(self, x: Tensor) -> Tensor:
            return x.index_select(2, self.kept)

    root, tracer = Selecting(), fx.Tracer()
    tracer.proxy_buffer_attributes = True
    groups, _ = follow(tracer.trace(root), root, (torch.empty(2, 5, 8, device="meta"),), RULES).finish()
    assert groups.tensors["kept"][0] == groups.values["index_select"][2]
    assert groups.pinned[groups.values["x"][2][0]] == "it is selected from"


def test_attention_names_what_it_runs_side_by_side_and_what_it_scores_by() -> None:
    class Attending(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    root = Attending()
    shapes = ((2, 4, 5, 6), (2, 4, 7, 6), (2, 4, 7, 3), (4, 1, 7))
    inputs = tuple(torch.empty(shape, device="meta") for shape in shapes)
    groups, (core,) = follow(fx.Tracer().trace(root), root, inputs, RULES).finish()
    q, k, v, mask = (groups.values[name] for name in ("q", "k", "v", "mask"))
    assert core.heads == q[:2] == k[:2] == v[:2]
    assert core.scored == q[3] == k[3]
    assert core.mixed == v[3]
    assert mask[0] == q[1]
    assert mask[2] == k[2] == v[2]
    assert groups.pinned[k[2][0]] == "attention takes a softmax over it"
    assert groups.values["scaled_dot_product_attention"] == (*q[:3], v[3])
