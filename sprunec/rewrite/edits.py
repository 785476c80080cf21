"""Edit one traced graph: set new sizes, freeze scales, select indices of shared inputs, bypass sublayers."""

from __future__ import annotations

import math
import operator
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from sprunec.rewrite.keep import Keep, dim_indices, is_cut, width
from sprunec.rewrite.ops.flow import argument
from sprunec.rewrite.ops.groups import Groups
from sprunec.rewrite.ops.shape_ops import index_parts
from sprunec.rewrite.program import Program, first_output, needed_by
from sprunec.rewrite.trace import TracedBlock


def freeze_sizes(graph: fx.Graph, program: Program, keep: Keep) -> None:
    """Keep a size that is read off a cut dim what it was: scales depend on it, and views get their own new sizes."""
    for node in graph.nodes:
        dim = _read_dim(program, node)
        if dim is not None and is_cut(program.groups, dim, keep):
            frozen: dict[fx.Node, Any] = {node: program.groups.width(dim)}
            for user in list(node.users):
                user.args = map_arg(user.args, partial(_other, frozen))
                user.kwargs = map_arg(user.kwargs, partial(_other, frozen))


def _other(others: Mapping[fx.Node, Any], node: fx.Node) -> Any:
    return others.get(node, node)


def _read_dim(program: Program, node: fx.Node) -> Sequence[int] | None:
    """Find the dim whose size a node reads: x.size(1), x.shape[1] or x.size()[1]."""
    op = program.ops.get(node.name)
    source, index = (node.args[0], node.args[1]) if len(node.args) == 2 else (None, None)
    if op == "getitem" and isinstance(source, fx.Node) and program.ops.get(source.name) in ("shape", "size"):
        source = source.args[0]
    elif op != "size":
        return None
    if not isinstance(source, fx.Node) or not isinstance(index, int):
        return None
    layout = program.groups.values.get(source.name)
    return None if layout is None else layout[index]


def set_constants(graph: fx.Graph, program: Program, keep: Keep) -> None:
    """Set the numbers in node arguments that say how wide a cut dim is."""
    for node in graph.nodes:
        op = program.ops.get(node.name, "")
        if op in ("view", "reshape", "unflatten", "expand", "broadcast_to"):
            _resize_view(node, op, program, keep)
        elif op in BOUNDS:
            BOUNDS[op](node, program, keep)
        elif op == "scaled_dot_product_attention":
            # One without a scale divides by the root of a width, which a cut would change: name that scale.
            core = next(core for core in program.cores if core.node == node.name)
            if keep.keys() & set(core.scored) and node.kwargs.get("scale") is None:
                node.update_kwarg("scale", 1.0 / math.sqrt(math.prod(program.groups.sizes[g] for g in core.scored)))


def _resize_view(node: fx.Node, op: str, program: Program, keep: Keep) -> None:
    dims = program.groups.values[node.name]
    place, name = (2, "sizes") if op == "unflatten" else (1, "size" if op in ("expand", "broadcast_to") else "shape")
    # x.view(2, -1) as against x.view((2, -1)); unflatten takes a sequence alone
    spread = op != "unflatten" and len(node.args) > 1 and not isinstance(node.args[1], tuple | list)
    sizes = list(node.args[1:] if spread else argument(node, place, name))
    first = argument(node, 1, "dim") % (len(dims) - len(sizes) + 1) if op == "unflatten" else 0
    cut = [index for index, dim in enumerate(dims[first : first + len(sizes)]) if is_cut(program.groups, dim, keep)]
    cut = [index for index in cut if not (isinstance(sizes[index], int) and sizes[index] == -1)]
    if not cut:
        return
    for index in cut:
        sizes[index] = _resized(node, sizes[index], program.groups, dims[first + index], keep)
    if spread:
        node.args = (node.args[0], *sizes)
    else:
        _set_argument(node, place, name, tuple(sizes))


def _resized(node: fx.Node, old: Any, groups: Groups, dim: Sequence[int], keep: Keep) -> Any:
    """Give a new size; where it is a product with one that is read off an input, its other factor is the cut one."""
    new = width(groups, dim, keep)
    if not isinstance(old, fx.Node) or old.target is not operator.mul or not isinstance(old.args[1], int):
        return new
    with node.graph.inserting_before(node):
        return node.graph.call_function(operator.mul, (old.args[0], old.args[1] * new // groups.width(dim)))


def _resize_pieces(node: fx.Node, program: Program, keep: Keep) -> None:
    assert isinstance(node.args[0], fx.Node)
    groups, place = program.groups, argument(node, 2, "dim") or 0
    size, dim = argument(node, 1, "split_size_or_sections"), groups.values[node.args[0].name][place]
    if not is_cut(groups, dim, keep) or not node.users:
        return
    if isinstance(size, tuple | list):
        bounds = [_moved(groups, dim, keep, bound) for bound in accumulate(size, initial=0)]
        _set_argument(node, 1, "split_size_or_sections", tuple(end - start for start, end in pairwise(bounds)))
    else:
        piece = groups.values[next(iter(node.users)).name][place]
        _set_argument(node, 1, "split_size_or_sections", width(groups, piece, keep))


def _resize_slices(node: fx.Node, program: Program, keep: Keep) -> None:
    """Move the bounds of slices, and the numbers in lists that are slices, to where the same entries are."""
    source, index = node.args
    if not isinstance(source, fx.Node) or source.name not in program.groups.values:
        return
    dims, groups, parts = iter(program.groups.values[source.name]), program.groups, []
    for part in index_parts(index, len(program.groups.values[source.name])):
        dim = () if part is None else next(dims)
        if isinstance(part, slice) and part != slice(None) and is_cut(groups, dim, keep):
            start, stop, _ = part.indices(groups.width(dim))
            part = slice(_moved(groups, dim, keep, start), _moved(groups, dim, keep, stop))
        parts.append(part)
    if parts != index_parts(index, len(program.groups.values[source.name])):
        node.args = (source, tuple(parts))


def _resize_narrow(node: fx.Node, program: Program, keep: Keep) -> None:
    assert isinstance(node.args[0], fx.Node)
    place, start, length = (argument(node, 1 + i, name) for i, name in enumerate(("dim", "start", "length")))
    dim = program.groups.values[node.args[0].name][place]
    if is_cut(program.groups, dim, keep):
        begin, end = (_moved(program.groups, dim, keep, bound) for bound in (start, start + length))
        _set_argument(node, 2, "start", begin)
        _set_argument(node, 3, "length", end - begin)


def _resize_repeats(node: fx.Node, program: Program, keep: Keep) -> None:
    repeated = program.groups.values[node.name][argument(node, 2, "dim")][-1]
    if repeated in keep:
        _set_argument(node, 1, "repeats", width(program.groups, (repeated,), keep))


BOUNDS = {
    "split": _resize_pieces,
    "getitem": _resize_slices,
    "narrow": _resize_narrow,
    "repeat_interleave": _resize_repeats,
}


def _moved(groups: Groups, dim: Sequence[int], keep: Keep, bound: int) -> int:
    """Tell where a bound between two entries of a dim is when some are cut: behind those before it that are kept."""
    # Of heads that differ from group to group as many are kept in each.
    some = {group: each if isinstance(each, tuple) else next(iter(each.by.values())) for group, each in keep.items()}
    return bisect_left(dim_indices(groups, dim, some), bound)


def _set_argument(node: fx.Node, place: int, name: str, value: Any) -> None:
    if len(node.args) > place:
        node.update_arg(place, value)
    else:
        node.update_kwarg(name, value)


def cut_buffers(block: TracedBlock, program: Program, keep: Keep) -> dict[str, Tensor]:
    """Cut buffers outside the state dict, such as the index of an earlier selection, with their site."""
    state = set(block.module.state_dict(keep_vars=True))
    found = {}
    for name, tensor in block.tensors().items():
        if name in state:
            continue
        for place, dim in enumerate(program.groups.tensors.get(name, ())):
            if is_cut(program.groups, dim, keep):
                indices = torch.tensor(dim_indices(program.groups, dim, keep), device=tensor.device)
                tensor = tensor.index_select(place, indices)
        found[name] = tensor
    return found


def select_shared(graph: fx.Graph, forward: Program, keep: Keep, device: torch.device) -> dict[str, Tensor]:
    """Select what this block still reads of what comes from outside: that is all blocks' and stays whole.

    Only the plain forward's inputs are shared; what a cached forward is given besides, its past, is this block's own.
    """
    shared = [node.name for node in forward.graph.nodes if node.op == "placeholder"][1:]
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    buffers: dict[str, Tensor] = {}
    for node in placeholders:
        for place, dim in enumerate(forward.groups.values.get(node.name, ()) if node.name in shared else ()):
            if not is_cut(forward.groups, dim, keep):
                continue
            # A dim may be heads inside of a batch, whose size is that of each call.
            first = next(i for i, group in enumerate(dim) if is_cut(forward.groups, (group,), keep))
            name, inner = f"kept_{node.name}_{place}", forward.groups.width(dim[first:])
            buffers[name] = torch.tensor(dim_indices(forward.groups, dim[first:], keep), device=device)
            with graph.inserting_after(placeholders[-1]):
                index = graph.get_attr(name)
            selected = _select(graph, node, index, place, inner if first else 0)
            node.replace_all_uses_with(selected[-1], delete_user_cb=lambda user, made=selected: user not in made)
    return buffers


def _select(graph: fx.Graph, node: fx.Node, index: fx.Node, place: int, inner: int) -> list[fx.Node]:
    """Select entries of a dim, or where `inner` of them are in one entry of what is around them, of each of these."""
    made = [index]

    def add(function: Callable[..., Any], *args: Any) -> fx.Node:
        with graph.inserting_after(made[-1]):
            made.append(graph.call_function(function, args))
        return made[-1]

    if not inner:
        add(torch.index_select, node, place, index)
    else:
        parts = add(torch.unflatten, node, place, (-1, inner))
        add(torch.flatten, add(torch.index_select, parts, place + 1, index), place, place + 1)
    return made


def bypass(graph: fx.Graph, add: str, stream: str) -> None:
    """Take a sublayer out: its sum becomes its stream; whatever else it returned (its past) becomes None.

    What a block returns beside its hidden states is this sublayer's where it comes of weights that the hidden states
    do not need any more. Left in place, it would hold those weights in the graph; a past of another sublayer stays.
    """
    nodes = {node.name: node for node in graph.nodes}
    nodes[add].replace_all_uses_with(nodes[stream])
    output = graph.output_node()
    result = output.args[0]
    if isinstance(result, tuple | list):
        weights = {node for node in graph.nodes if node.op == "get_attr"}
        dead = weights - needed_by(first_output(graph))
        rest = (None if isinstance(each, fx.Node) and dead & needed_by(each) else each for each in result[1:])
        output.args = ((result[0], *rest),)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
