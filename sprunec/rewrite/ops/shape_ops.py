"""How axes flow through ops that only lay dims out anew: views, transposes, pieces, what is put together."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from sprunec.rewrite.ops.axes import Axis, Dim, Layout, fresh, piece, pin, regroup, size, unite
from sprunec.rewrite.ops.flow import Flow, argument, tensor_inputs


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


def expand(flow: Flow, node: fx.Node) -> Layout:
    """Lay out dims of 1 that are repeated, and new ones in front, anew."""
    source, shape = flow.layout(node.args[0]), flow.shape(node)
    aligned: list[Dim | None] = [*[None] * (len(shape) - len(source)), *source]
    pairs = zip(aligned, shape, strict=True)
    return [[Axis(length)] if dim is None or size(dim) != length else dim for dim, length in pairs]


def repeat_interleave(flow: Flow, node: fx.Node) -> Layout:
    """Repeat each entry of a dim: it becomes the outer factor of the new one."""
    times, dim = argument(node, 1, "repeats"), argument(node, 2, "dim")
    if not isinstance(times, int) or dim is None:
        return flow.lost(node, node)
    layout = list(flow.layout(node.args[0]))
    layout[dim] = [*layout[dim], Axis(times)]
    return layout


def stack(flow: Flow, node: fx.Node) -> Layout:
    """Unite the parts entry by entry; the new dim tells them apart."""
    first, *others = (flow.layout(value) for value in node.args[0])  # type: ignore[union-attr]
    for other in others:
        for ours, theirs in zip(first, other, strict=True):
            unite(ours, theirs)
    place = argument(node, 1, "dim", 0) % (len(first) + 1)
    return [*first[:place], [Axis(1 + len(others), "it tells apart what is stacked")], *first[place:]]


def narrow(flow: Flow, node: fx.Node) -> Layout:
    layout = list(flow.layout(node.args[0]))
    dim, start, length = (argument(node, 1 + i, name) for i, name in enumerate(("dim", "start", "length")))
    layout[dim] = part(layout[dim], slice(start, start + length), flow.shape(node)[dim])
    return layout


def concatenate(flow: Flow, node: fx.Node) -> Layout:
    parts = [flow.layout(value) for value in node.args[0]]  # type: ignore[union-attr]
    # Tensors of shape (0,) may be put together with any others, and change nothing.
    parts = [part for part in parts if len(part) == len(flow.shape(node))]
    along = argument(node, 1, "dim", 0) % len(parts[0])
    result = list(parts[0])
    origins = {_sliced_from(flow, value) for value in node.args[0]}  # type: ignore[union-attr]
    rotary = len(origins) == 1 and None not in origins
    reason = "its parts change places, as those of rotary pairs do" if rotary else "it is concatenated"
    for part in parts:
        pin(part[along], reason)
    for part in parts[1:]:
        for place, dim in enumerate(part):
            if place != along:
                unite(result[place], dim)
    result[along] = [Axis(flow.shape(node)[along], reason)]
    return result


def _sliced_from(flow: Flow, value: Any) -> fx.Node | None:
    """Find what a value is a slice of, perhaps scaled and added to."""
    while isinstance(value, fx.Node) and value.op.startswith("call"):
        if flow.op(value) in ("getitem", "narrow"):
            source = value.args[0]
            return source if isinstance(source, fx.Node) and flow.is_tensor(source) else None
        value = next(tensor_inputs(flow, value), None) if flow.op(value) in ("neg", "mul", "add", "sub", "to") else None
    return None


def item(flow: Flow, node: fx.Node) -> Layout:
    """Lay out x[...] of a tensor, or one of the pieces that a chunk, split or unbind gave."""
    source, index = node.args
    if not flow.is_tensor(source):
        return split_piece(flow, node, source)  # type: ignore[arg-type]
    pending, result = list(flow.layout(source)), Layout()
    for each in index_parts(index, len(pending)):
        if each is None:
            result.append([Axis(1)])
            continue
        dim = pending.pop(0)
        if isinstance(each, int):
            pin(dim, "it is indexed")
        elif isinstance(each, slice):
            result.append(part(dim, each, flow.shape(node)[len(result)]))
        else:
            pin(dim, "it is indexed")
            return flow.pinned(node, pending, "it is indexed by a tensor")
    return [*result, *pending]


def index_parts(index: Any, dims: int) -> list[Any]:
    """Spell out what x[index] does to each dim of `dims`: a slice, a number, or None for a new one."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(each is Ellipsis for each in parts):
        at = next(i for i, each in enumerate(parts) if each is Ellipsis)
        parts[at : at + 1] = [slice(None)] * (dims - sum(each is not None for each in parts) + 1)
    return [_run(each) if isinstance(each, list) else each for each in parts]


def _run(numbers: list[Any]) -> Any:
    """Make a list of numbers that follow each other a slice."""
    first, last = numbers[0], numbers[-1]
    if not all(isinstance(n, int) for n in numbers) or numbers != list(range(first, last + 1)):
        return numbers
    return slice(first, None if last == -1 else last + 1)


def part(dim: Dim, cut: slice, length: int) -> Dim:
    """Take a slice, so long, out of a dim."""
    if length == size(dim) and cut.step in (None, 1):
        return dim
    if cut.step not in (None, 1) or not all(bound is None or isinstance(bound, int) for bound in (cut.start, cut.stop)):
        reason = (
            "it is taken in steps, as pairs of rotary positions are" if cut.step not in (None, 1) else "it is indexed"
        )
        pin(dim, reason)
        return [Axis(length, reason)]
    start, stop, _ = cut.indices(size(dim))
    return piece(dim, start, stop) if stop > start else fresh((length,), "it has no entries")[0]


def split_piece(flow: Flow, node: fx.Node, source: fx.Node) -> Layout:
    """View the dim that was cut up as (pieces, rest); where the pieces are unequal, it is their sum."""
    name = flow.op(source)
    if name not in ("chunk", "split", "tensor_split", "unbind"):
        return flow.lost(node, source)
    layout = list(flow.layout(source.args[0]))
    dim = argument(source, 1 if name == "unbind" else 2, "dim", 0) % len(layout)
    if name == "unbind":
        pin(layout[dim], "it is unbound")
        return [*layout[:dim], *layout[dim + 1 :]]
    lengths, number = [each.shape[dim] for each in flow.shapes[source.name]], int(node.args[1])  # type: ignore[arg-type]
    if len({*lengths}) > 1:
        if name != "split":
            return flow.pinned(node, [layout[dim]], "it is split unevenly")
        start = sum(lengths[:number])
        return [*layout[:dim], piece(layout[dim], start, start + lengths[number]), *layout[dim + 1 :]]
    count, rest = regroup([layout[dim]], (len(lengths), lengths[0]))
    pin(count, "it counts the pieces of a split")
    return [*layout[:dim], rest, *layout[dim + 1 :]]
