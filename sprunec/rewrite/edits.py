"""Edits of one traced graph: new sizes, frozen scales, selected columns, bypassed sublayers."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from sprunec.rewrite.program import Program, first_output
from sprunec.rewrite.recipe import Keep, dim_indices
from sprunec.rewrite.trace import TracedBlock

Path = tuple[str | int, ...]


def copy_graph(graph: fx.Graph) -> fx.Graph:
    """An independent copy whose nodes keep their names."""
    return copy.deepcopy(graph)


def freeze_sizes(graph: fx.Graph, program: Program, keep: Keep) -> None:
    """A size that is read off a cut dim stays what it was: scales depend on it, and views get their own new sizes."""
    for node in graph.nodes:
        dim = _read_dim(program, node)
        if dim is not None and keep.keys() & set(dim):
            _replace_by(node, math.prod(program.groups.sizes[g] for g in dim))


def _replace_by(node: fx.Node, constant: int) -> None:
    def value(argument: fx.Node) -> Any:
        return constant if argument is node else argument

    for user in list(node.users):
        user.args, user.kwargs = map_arg(user.args, value), map_arg(user.kwargs, value)


def _read_dim(program: Program, node: fx.Node) -> Sequence[int] | None:
    """The dim whose size a node reads: x.size(1), x.shape[1] or x.size()[1]."""
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


def constants(program: Program, keep: Keep) -> dict[str, dict[Path, Any]]:
    """New values of the numbers in node arguments that say how wide a cut dim is."""
    found: dict[str, dict[Path, Any]] = {}
    for node in program.graph.nodes:
        op = program.ops.get(node.name)
        changes: dict[Path, Any] = {}
        if op in ("view", "reshape", "unflatten"):
            changes = _view_sizes(program, node, op, keep)
        elif op == "split":
            changes = _split_size(program, node, keep)
        elif op == "scaled_dot_product_attention":
            changes = _default_scale(program, node, keep)
        if changes:
            found[node.name] = changes
    return found


def _view_sizes(program: Program, node: fx.Node, op: str, keep: Keep) -> dict[Path, Any]:
    dims = program.groups.values[node.name]
    found: dict[Path, Any] = {}
    for place, (path, size) in enumerate(_sizes(node, op), start=_first_dim(node, op, len(dims))):
        if not (isinstance(size, int) and size == -1) and keep.keys() & set(dims[place]):
            found[path] = _width(program, dims[place], keep)
    return found


def _sizes(node: fx.Node, op: str) -> list[tuple[Path, Any]]:
    """Where the sizes of a view stand among its arguments."""
    if op != "unflatten" and len(node.args) > 1 and not isinstance(node.args[1], tuple | list):
        return [(("args", place), size) for place, size in enumerate(node.args[1:], start=1)]
    path, sizes = _argument(node, 2, "sizes") if op == "unflatten" else _argument(node, 1, "shape")
    return [((*path, place), size) for place, size in enumerate(sizes)]


def _first_dim(node: fx.Node, op: str, dims: int) -> int:
    if op != "unflatten":
        return 0
    return int(_argument(node, 1, "dim")[1]) % (dims - len(_argument(node, 2, "sizes")[1]) + 1)


def _split_size(program: Program, node: fx.Node, keep: Keep) -> dict[Path, Any]:
    piece = next(iter(node.users), None)
    path, size = _argument(node, 1, "split_size_or_sections")
    if piece is None:
        return {}
    dims = program.groups.values[piece.name]
    dim = dims[_argument(node, 2, "dim")[1] or 0]
    paths = [(*path, place) for place in range(len(size))] if isinstance(size, tuple | list) else [path]
    return dict.fromkeys(paths, _width(program, dim, keep)) if keep.keys() & set(dim) else {}


def _default_scale(program: Program, node: fx.Node, keep: Keep) -> dict[Path, Any]:
    """Attention without a scale divides by the root of a width; a cut of that width must not change it."""
    core = next(core for core in program.cores if core.node == node.name)
    if not keep.keys() & set(core.scored) or node.kwargs.get("scale") is not None:
        return {}
    return {("kwargs", "scale"): 1.0 / math.sqrt(math.prod(program.groups.sizes[g] for g in core.scored))}


def _width(program: Program, dim: Sequence[int], keep: Keep) -> int:
    return math.prod(len(keep[g]) if g in keep else program.groups.sizes[g] for g in dim)


def _argument(node: fx.Node, place: int, name: str) -> tuple[Path, Any]:
    if len(node.args) > place:
        return ("args", place), node.args[place]
    return ("kwargs", name), node.kwargs.get(name)


def set_constants(graph: fx.Graph, changes: Mapping[str, Mapping[Path, Any]]) -> None:
    for node in graph.nodes:
        for path, value in changes.get(node.name, {}).items():
            if path[0] == "kwargs":
                node.kwargs = _replaced(node.kwargs, path[1:], value)
            else:
                node.args = _replaced(node.args, path[1:], value)


def _replaced(holder: Any, path: Path, value: Any) -> Any:
    """A copy of nested arguments with one of them set."""
    if not path:
        return value
    if isinstance(holder, Mapping):
        return {**holder, path[0]: _replaced(holder.get(path[0]), path[1:], value)}
    parts = list(holder)
    parts[int(path[0])] = _replaced(parts[int(path[0])], path[1:], value)
    return tuple(parts)


def cut_buffers(block: TracedBlock, program: Program, keep: Keep) -> dict[str, Tensor]:
    """Buffers outside the state dict, such as the index of an earlier selection, cut with their site."""
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
    """What comes from outside is shared by all blocks and stays whole: select what this block still reads of it.

    Only the plain forward's inputs are shared; what a cached forward is given besides, its past, is this block's own.
    """
    shared = [node.name for node in forward.graph.nodes if node.op == "placeholder"][1:]
    buffers: dict[str, Tensor] = {}
    for node in [n for n in graph.nodes if n.op == "placeholder" and n.name in shared]:
        for place, dim in enumerate(forward.groups.values.get(node.name, ())):
            if keep.keys() & set(dim):
                name = f"kept_{node.name}_{place}"
                buffers[name] = torch.tensor(dim_indices(forward.groups, dim, keep), device=device)
                _insert_select(graph, node, place, name)
    return buffers


def _insert_select(graph: fx.Graph, node: fx.Node, dim: int, buffer: str) -> None:
    last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    with graph.inserting_after(last):
        index = graph.get_attr(buffer)
    with graph.inserting_after(index):
        selected = graph.call_function(torch.index_select, (node, dim, index))
    node.replace_all_uses_with(selected, delete_user_cb=lambda user: user is not selected)


def bypass(graph: fx.Graph, add: str, stream: str) -> None:
    """Take a sublayer out: its sum becomes its stream; whatever else it returned (its past) becomes None."""
    nodes = {node.name: node for node in graph.nodes}
    nodes[add].replace_all_uses_with(nodes[stream])
    output = graph.output_node()
    result = output.args[0]
    if isinstance(result, tuple | list):
        output.args = ((result[0], *(_unless_dead(graph, value) for value in result[1:])),)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))


def _unless_dead(graph: fx.Graph, value: Any) -> Any:
    pending, needed = [first_output(graph)], set()
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending.extend(node.all_input_nodes)
    dead = [n for n in graph.nodes if n not in needed and n.op == "get_attr"]
    return None if isinstance(value, fx.Node) and _depends(value, set(dead)) else value


def _depends(value: fx.Node, sources: set[fx.Node]) -> bool:
    pending, seen = [value], set()
    while pending:
        node = pending.pop()
        if node in sources:
            return True
        if node not in seen:
            seen.add(node)
            pending.extend(node.all_input_nodes)
    return False
