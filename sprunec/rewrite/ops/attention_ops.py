"""How axes flow through attention: one op, or the products of matrices around a softmax."""

from __future__ import annotations

from typing import Any

from torch import fx

from sprunec.rewrite.ops.axes import Dim, Layout, fresh, meet, pin, regroup, size, unite
from sprunec.rewrite.ops.flow import Flow, argument, pin_all, tensor_inputs

PRODUCTS = ("matmul", "bmm", "baddbmm")


def matmul(flow: Flow, node: fx.Node) -> Layout:
    return product(flow, node, node.args[0], node.args[1])


def baddbmm(flow: Flow, node: fx.Node) -> Layout:
    """Lay out bias + left @ right."""
    bias, left, right = (argument(node, i, name) for i, name in enumerate(("input", "batch1", "batch2")))
    result = product(flow, node, left, right)
    for ours, theirs in zip(reversed(result), reversed(flow.layout(bias)), strict=False):
        if size(theirs) == size(ours):
            unite(ours, theirs)
    return result


def product(flow: Flow, node: fx.Node, first: Any, second: Any) -> Layout:
    """Pair the leading dims of two stacks of matrices, or none where the second is one matrix; sum the inner ones."""
    left, right = flow.layout(first), flow.layout(second)
    if min(len(left), len(right)) < 2 or len(right) not in (2, len(left)):
        pin_all([*left, *right], "it goes through a matmul of unlike ranks")
        return fresh(flow.shape(node), "it comes out of a matmul of unlike ranks")
    pairs = zip(left[:-2], right[:-2], strict=True) if len(left) == len(right) else ()
    side_by_side = [meet(ours, theirs) for ours, theirs in pairs] or left[:-2]
    unite(left[-1], right[-2])
    flow.sums_over(node, first, len(left) - 1)
    mixed = softmax_origin(flow, first)
    if mixed is not None:
        flow.cores.append((node.name, side_by_side, scored_dim(flow, mixed), right[-1]))
    return [*side_by_side, left[-2], right[-1]]


def attention(flow: Flow, node: fx.Node) -> Layout:
    """Lay out softmax(q kᵀ + mask) v: leading dims run side by side, E is summed over, the rest is mixed.

    With `enable_gqa`, queries that share their keys and values are a factor of the queries' heads alone.
    """
    query, key, value = (flow.layout(argument(node, i, name)) for i, name in enumerate(("query", "key", "value")))
    if not len(query) == len(key) == len(value):
        pin_all([*query, *key, *value], "it goes through an attention of unlike ranks")
        return fresh(flow.shape(node), "it comes out of an attention of unlike ranks")
    rows = list(zip(query[:-2], key[:-2], value[:-2], strict=True))
    grouped = bool(node.kwargs.get("enable_gqa")) and len(rows) > 0
    side_by_side = [meet(meet(ours, keys), values) for ours, keys, values in rows[: len(rows) - grouped]]
    if grouped:
        side_by_side.append(_grouped(*rows[-1]))
    unite(query[-1], key[-1])
    unite(key[-2], value[-2])
    pin(key[-2], "attention takes a softmax over it")
    mask = argument(node, 3, "attn_mask")
    if mask is not None:
        align_mask(flow.layout(mask), [*side_by_side, query[-2], key[-2]])
    flow.sums_over(node, argument(node, 0, "query"), len(query) - 1)
    flow.cores.append((node.name, side_by_side, query[-1], value[-1]))
    return [*side_by_side, query[-2], value[-1]]


def _grouped(query: Dim, key: Dim, value: Dim) -> Dim:
    """Pair the heads of queries with those of fewer keys and values: each of those has its own run of queries."""
    unite(key, value)
    if size(key) in (1, size(query)) or size(query) % size(key):
        return meet(query, key)
    groups, _ = regroup([query], (size(key), size(query) // size(key)))
    unite(groups, key)
    return query


def align_mask(mask: Layout, scores: Layout) -> None:
    """Meet a mask's dims, from the right, with the scores'; one query's or one key's 1 is no axis of the mask's."""
    for back, (ours, theirs) in enumerate(zip(reversed(scores), reversed(mask), strict=False), start=1):
        if back > 2 or size(theirs) != 1:
            meet(ours, theirs)


def softmax_origin(flow: Flow, value: Any) -> fx.Node | None:
    """Find the softmax whose weights a product mixes with, where its first factor is made of one."""
    while isinstance(value, fx.Node) and value.op != "placeholder":
        if flow.op(value) == "softmax":
            return value
        value = next(tensor_inputs(flow, value), None)
        if isinstance(value, fx.Node) and flow.op(value) in (*PRODUCTS, "linear", "addmm"):
            return None
    return None


def scored_dim(flow: Flow, softmax_node: fx.Node) -> Dim:
    """Find the dim that the scores under a softmax were summed over."""
    pending = list(tensor_inputs(flow, softmax_node))
    while pending:
        value = pending.pop()
        if flow.op(value) in PRODUCTS:
            left = argument(value, 1, "batch1") if flow.op(value) == "baddbmm" else value.args[0]
            return flow.layout(left)[-1]
        if value.op != "placeholder" and value.op != "get_attr":
            pending.extend(tensor_inputs(flow, value))
    return []
