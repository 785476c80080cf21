"""Where the states of a model can be watched, whether its blocks are modules or graphs.

A gated block is one graph, as is any block of a library's class: the modules that it was traced from are gone. A *tap*
then takes a module's place, a module of its own that the node of the state goes into, and that changes nothing. It
stands before every gate on that state: a gate belongs to what it multiplies into, as if its factor were part of those
weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import fx, nn

from sprunec.families.states import Point
from sprunec.rewrite.projections import turns
from sprunec.rewrite.trace import TracedBlock


def observable(
    model: nn.Module, points: Iterable[Point], blocks: Sequence[TracedBlock] = ()
) -> dict[Point, tuple[nn.Module, str]]:
    """Find a module for each point, and whether the state is its first input ("pre") or its output ("post").

    Blocks that are graphs get taps, in place. A state in one may have all positions in one dim (B N, width).

    Args:
        blocks: what was traced of `model` before it got gates.
    """
    traced, found = {block.path: block for block in blocks}, {}
    for point in points:
        parts = point.module.split(".")
        paths = (".".join(parts[:length]) for length in range(1, len(parts)))
        path = next((path for path in paths if isinstance(model.get_submodule(path), fx.GraphModule)), None)
        holder = model.get_submodule(path) if path is not None else None
        if path is None or not isinstance(holder, fx.GraphModule):
            found[point] = model.get_submodule(point.module), point.side
        else:
            found[point] = tap(holder, _node(holder, traced.get(path), parts[path.count(".") + 1 :], point)), "post"
    return found


def _node(holder: fx.GraphModule, block: TracedBlock | None, inner: Sequence[str], point: Point) -> str:
    """Name the node of a point in a graph: as a module's call was noted, else by the weight that is multiplied with."""
    name, graph = ".".join(inner), holder.graph if block is None else block.forward.graph
    if block is not None and name in block.forward.calls:
        call = block.forward.calls[name]
        return call.given if point.side == "pre" else call.result
    weight = next(node for node in graph.nodes if node.op == "get_attr" and node.target == f"{name}.weight")
    product = next(iter(weight.users))
    while turns(product):
        weight, product = product, next(iter(product.users))
    if point.side == "post":
        return str(product.name)
    # `linear` has its input in front of the weight, and so has `addmm`, behind the bias.
    before = product.all_input_nodes[product.all_input_nodes.index(weight) - 1]
    return str(before.name)


def tap(block: fx.GraphModule, name: str) -> nn.Module:
    """Put a module behind the node, one for all its points; nothing uses its output, so the block stays the same."""
    module, target = nn.Identity(), f"taps.{name}"
    if target in dict(block.named_modules()):
        return block.get_submodule(target)
    block.add_submodule(target, module)
    node = next(node for node in block.graph.nodes if node.name == name)
    with block.graph.inserting_after(node):
        block.graph.call_module(target, (node,))
    block.recompile()
    return module
