"""How axes flow through ops that only lay dims out anew: views, transposes, pieces, what is put together."""

from __future__ import annotations

import torch
from torch import fx

from sprunec.rewrite.ops.axes import Axis, Layout, pin, regroup, unite
from sprunec.rewrite.ops.flow import Flow, argument


def view(flow: Flow, node: fx.Node) -> Layout:
    if any(isinstance(flow.shapes[value.name], torch.Size) for value in node.all_input_nodes):
        return flow.pinned(node, flow.layout(node.args[0]), "it is viewed in another tensor's shape")
    return regroup(flow.layout(node.args[0]), flow.shape(node))


def transpose(flow: Flow, node: fx.Node) -> Layout:
    layout = list(flow.layout(node.args[0]))
    first, second = argument(node, 1, "dim0"), argument(node, 2, "dim1")
    layout[first], layout[second] = layout[second], layout[first]
    return layout


def permute(flow: Flow, node: fx.Node) -> Layout:
    order = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
    layout = flow.layout(node.args[0])
    return [layout[place] for place in order]  # type: ignore[index]


def matrix_transpose(flow: Flow, node: fx.Node) -> Layout:
    layout = flow.layout(node.args[0])
    return [*layout[:-2], layout[-1], layout[-2]]


def index_select(flow: Flow, node: fx.Node) -> Layout:
    """Let what is selected go with the index, so that cutting it cuts the index."""
    layout = list(flow.layout(node.args[0]))
    dim = argument(node, 1, "dim") % len(layout)
    pin(layout[dim], "it is selected from")
    layout[dim] = flow.layout(argument(node, 2, "index"))[0]
    return layout


def concatenate(flow: Flow, node: fx.Node) -> Layout:
    parts = [flow.layout(value) for value in node.args[0]]  # type: ignore[union-attr]
    # Tensors of shape (0,) may be put together with any others, and change nothing.
    parts = [part for part in parts if len(part) == len(flow.shape(node))]
    along = argument(node, 1, "dim", 0) % len(parts[0])
    result = list(parts[0])
    for part in parts:
        pin(part[along], "it is concatenated")
    for part in parts[1:]:
        for place, dim in enumerate(part):
            if place != along:
                unite(result[place], dim)
    result[along] = [Axis(flow.shape(node)[along], "it is concatenated")]
    return result


def item(flow: Flow, node: fx.Node) -> Layout:
    """Lay out x[...] of a tensor, or one of the pieces that a chunk, split or unbind gave."""
    source, index = node.args
    if not flow.is_tensor(source):
        return piece(flow, node, source)  # type: ignore[arg-type]
    layout, result = flow.layout(source), []
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(part is Ellipsis for part in parts):
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (len(layout) - sum(p is not None for p in parts) + 1)
    pending = list(layout)
    for part in parts:
        if part is None:
            result.append([Axis(1)])
            continue
        dim = pending.pop(0)
        if part != slice(None):
            pin(dim, "it is indexed")
        if isinstance(part, slice):
            result.append(dim if part == slice(None) else [Axis(flow.shape(node)[len(result)], "it is indexed")])
        elif not isinstance(part, int):
            return flow.pinned(node, pending, "it is indexed by a tensor")
    return [*result, *pending]


def piece(flow: Flow, node: fx.Node, source: fx.Node) -> Layout:
    """View the dim that was cut up as (pieces, rest); pin it where the pieces are unequal."""
    whole, name = source.args[0], flow.op(source)
    if name not in ("chunk", "split", "tensor_split", "unbind"):
        return flow.lost(node, source)
    layout = list(flow.layout(whole))
    dim = argument(source, 1 if name == "unbind" else 2, "dim", 0) % len(layout)
    pieces = flow.shapes[source.name]
    if name == "unbind":
        pin(layout[dim], "it is unbound")
        return [*layout[:dim], *layout[dim + 1 :]]
    length = pieces[0].shape[dim]
    if any(each.shape[dim] != length for each in pieces):
        return flow.pinned(node, [layout[dim]], "it is split unevenly")
    count, rest = regroup([layout[dim]], (len(pieces), length))
    pin(count, "it counts the pieces of a split")
    return [*layout[:dim], rest, *layout[dim + 1 :]]
