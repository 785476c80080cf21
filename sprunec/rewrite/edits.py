"""Edit one traced graph: set new sizes, freeze scales, select indices of shared inputs, bypass sublayers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from sprunec.rewrite.ops.flow import argument
from sprunec.rewrite.program import Program, first_output, needed_by
from sprunec.rewrite.recipe import Keep, dim_indices
from sprunec.rewrite.trace import TracedBlock


def freeze_sizes(graph: fx.Graph, program: Program, keep: Keep) -> None:
    """Keep a size that is read off a cut dim what it was: scales depend on it, and views get their own new sizes."""
    for node in graph.nodes:
        dim = _read_dim(program, node)
        if dim is not None and keep.keys() & set(dim):
            frozen: dict[fx.Node, Any] = {node: math.prod(program.groups.sizes[g] for g in dim)}
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
        op = program.ops.get(node.name)
        if op in ("view", "reshape", "unflatten"):
            _resize_view(node, op, program, keep)
        elif op == "split":
            _resize_pieces(node, program, keep)
        elif op == "scaled_dot_product_attention":
            # One without a scale divides by the root of a width, which a cut would change: name that scale.
            core = next(core for core in program.cores if core.node == node.name)
            if keep.keys() & set(core.scored) and node.kwargs.get("scale") is None:
                node.update_kwarg("scale", 1.0 / math.sqrt(math.prod(program.groups.sizes[g] for g in core.scored)))


def _resize_view(node: fx.Node, op: str, program: Program, keep: Keep) -> None:
    dims = program.groups.values[node.name]
    place, name = (2, "sizes") if op == "unflatten" else (1, "shape")
    # x.view(2, -1) as against x.view((2, -1)); unflatten takes a sequence alone
    spread = op != "unflatten" and len(node.args) > 1 and not isinstance(node.args[1], tuple | list)
    sizes = list(node.args[1:] if spread else argument(node, place, name))
    first = argument(node, 1, "dim") % (len(dims) - len(sizes) + 1) if op == "unflatten" else 0
    cut = [index for index, dim in enumerate(dims[first : first + len(sizes)]) if keep.keys() & set(dim)]
    cut = [index for index in cut if not (isinstance(sizes[index], int) and sizes[index] == -1)]
    if not cut:
        return
    for index in cut:
        sizes[index] = _width(program, dims[first + index], keep)
    if spread:
        node.args = (node.args[0], *sizes)
    else:
        _set_argument(node, place, name, tuple(sizes))


def _resize_pieces(node: fx.Node, program: Program, keep: Keep) -> None:
    piece, size = next(iter(node.users), None), argument(node, 1, "split_size_or_sections")
    if piece is None:
        return
    dim = program.groups.values[piece.name][argument(node, 2, "dim") or 0]
    if keep.keys() & set(dim):
        width = _width(program, dim, keep)
        pieces = (width,) * len(size) if isinstance(size, tuple | list) else width
        _set_argument(node, 1, "split_size_or_sections", pieces)


def _width(program: Program, dim: Sequence[int], keep: Keep) -> int:
    return math.prod(len(keep[g]) if g in keep else program.groups.sizes[g] for g in dim)


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
            indices = torch.tensor(dim_indices(program.groups, dim, keep), device=tensor.device)
            tensor = tensor.index_select(place, indices) if keep.keys() & set(dim) else tensor
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
            if not keep.keys() & set(dim):
                continue
            name = f"kept_{node.name}_{place}"
            buffers[name] = torch.tensor(dim_indices(forward.groups, dim, keep), device=device)
            with graph.inserting_after(placeholders[-1]):
                index = graph.get_attr(name)
            with graph.inserting_after(index):
                selected = graph.call_function(torch.index_select, (node, place, index))
            node.replace_all_uses_with(selected, delete_user_cb=lambda user, selected=selected: user is not selected)
    return buffers


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
