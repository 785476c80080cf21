"""Where the states of a model can be watched, whether its blocks are modules or graphs.

A gated block is one graph: the modules that it was traced from are gone. A *tap* then takes a module's place, a module
of its own that the node of the state goes into, and that changes nothing. It stands before every gate on that state: a
gate belongs to what it multiplies into, as if its factor were part of those weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import fx, nn

from sprunec.families.states import Point
from sprunec.rewrite.trace import TracedBlock


def observable(
    model: nn.Module, points: Iterable[Point], blocks: Sequence[TracedBlock] = ()
) -> dict[Point, tuple[nn.Module, str]]:
    """Find a module for each point, and whether the state is its first input ("pre") or its output ("post").

    Args:
        blocks: what was traced of `model` before some of its blocks became graphs, which then get taps, in place.
    """
    found = {}
    for point in points:
        block = next((block for block in blocks if point.module.startswith(f"{block.path}.")), None)
        holder = model.get_submodule(block.path) if block is not None else None
        if block is None or not isinstance(holder, fx.GraphModule):
            found[point] = model.get_submodule(point.module), point.side
        else:
            call = block.forward.calls[point.module.removeprefix(f"{block.path}.")]
            found[point] = tap(holder, call.given if point.side == "pre" else call.result), "post"
    return found


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
