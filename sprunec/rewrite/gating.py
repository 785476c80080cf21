"""Put gates into traced blocks: one multiplication per unit, where its contribution leaves.

A head's gate multiplies its context before the output projection, a feed-forward dim's the activation before the down
projection, a dim_head's both the query and the context, a sublayer's (or a whole block's) its output before the
residual add. This is how masks are trained, and how a masked model is computed; it shares nothing with the recipe that
cuts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from sprunec.errors import TraceError
from sprunec.rewrite.sites import SUBLAYER_OF, factors
from sprunec.rewrite.surgery import build, index_device
from sprunec.rewrite.trace import TracedBlock
from sprunec.units import INSIDE, SUBLAYERS, UNITS, Cut, Key


def scale_along(x: Tensor, gate: Tensor, dim: int, outer: int, inner: int) -> Tensor:
    """Multiply the entries of `x` along `dim`, which is (outer, units, inner), by `gate` (units,)."""
    factor = gate.view(1, -1, 1).expand(outer, -1, inner).reshape(-1)
    shape = [1] * x.dim()
    shape[dim] = -1
    return x * factor.view(shape).to(x.dtype)


@dataclass(frozen=True)
class Gates:
    """The gates of a model, by block number and unit; setting one changes what the model computes."""

    sizes: Mapping[Key, int]
    modules: Mapping[int, nn.Module]

    def set(self, block: int, unit: str, gate: Tensor) -> None:
        """Set a gate (units,), 1 is open; it may require gradients."""
        setattr(self.modules[block].gates, unit, gate)


def insert_gates(model: nn.Module, blocks: Sequence[TracedBlock], units: Iterable[str]) -> Gates:
    """Replace the traced blocks of `model`, in place, by gated ones over the same parameters; all gates open."""
    wanted, sizes, modules = tuple(units), dict[Key, int](), dict[int, nn.Module]()
    for block in blocks:
        here = {unit: _size(block, unit) for unit in wanted if _size(block, unit)}
        if here:
            modules[block.index] = _gated(block, here)
            model.set_submodule(block.path, modules[block.index])
        sizes |= {(block.index, unit): size for unit, size in here.items()}
    return Gates(sizes, modules)


def mask(model: nn.Module, blocks: Sequence[TracedBlock], kept: Cut) -> nn.Module:
    """Multiply everything outside `kept` of a model at full size by 0, in place."""
    gates = insert_gates(model, blocks, (*SUBLAYERS, *SUBLAYER_OF))
    devices = {block.index: index_device(block) for block in blocks}
    for (index, unit), size in gates.sizes.items():
        if unit in SUBLAYER_OF and unit not in kept[index] and kept.has(index, SUBLAYER_OF[unit]):
            continue  # nothing is said of them: all stay
        gate = torch.zeros(size, device=devices[index])
        gate[list(kept.units(index, unit))] = 1.0
        gates.set(index, unit, gate)
    for block in blocks:
        for unit in ("head", "dim_ff"):  # what cannot be cut may be kept whole
            here = INSIDE[unit] in block.sublayers() and unit not in block.sites and kept.units(block.index, unit)
            if here and len(here) != block.fixed.get(unit):
                raise TraceError(f"{block.path}: no {unit} can be cut here: {'; '.join(block.notes)}")
    return model


def _size(block: TracedBlock, unit: str) -> int:
    if unit in SUBLAYER_OF:
        return block.sites[unit].size if unit in block.sites else 0
    return int(not {*block.sublayers()}.isdisjoint(UNITS[unit].sublayers))


def _gated(block: TracedBlock, sizes: Mapping[str, int]) -> fx.GraphModule:
    graph = copy.deepcopy(block.forward.graph)
    nodes = {node.name: node for node in graph.nodes}
    for unit in sizes:
        if unit in block.sites:
            _gate_sums(block, graph, nodes, unit)
            continue
        for residual in block.forward.residuals:
            if residual.kind in UNITS[unit].sublayers:
                _scale_input(graph, nodes[residual.add], nodes[residual.branch], unit, -1, 1, 1)
    device, saved = index_device(block), set(block.module.state_dict(keep_vars=True))
    gates = {f"gates.{unit}": torch.ones(size, device=device) for unit, size in sizes.items()}
    others = {name: tensor for name, tensor in block.tensors().items() if name not in saved}
    state = {name: tensor for name, tensor in block.tensors().items() if name in saved}
    return build({"forward": graph}, gates | others, state, block)


def _gate_sums(block: TracedBlock, graph: fx.Graph, nodes: Mapping[str, fx.Node], unit: str) -> None:
    """Gate what goes into every sum over the unit's axes."""
    axes, site = block.forward.groups, block.sites[unit]
    for contraction in block.forward.contractions:
        node, operand, dim = nodes[contraction.node], nodes[contraction.operand], contraction.dim
        for group in site.groups["forward"]:
            if group in axes.values[contraction.operand][dim]:
                around = factors(axes, contraction.operand, dim, group, site.around.get("forward"))
                _scale_input(graph, node, operand, unit, dim, *around)


def _scale_input(graph: fx.Graph, node: fx.Node, operand: fx.Node, unit: str, dim: int, outer: int, inner: int) -> None:
    """Gate `operand` on its way into `node` only."""
    # Other readers of the operand, as the residual stream's, must not be gated. Of an operand that is gated already,
    # on the way into this node, `node` reads the outermost gate: gates of several kinds stack there, and the new one
    # goes on top, so that each multiplies once.
    present = next(v for v in node.all_input_nodes if v is operand or operand in _gated_inputs(v))
    with graph.inserting_before(node):
        gate = graph.get_attr(f"gates.{unit}")
        scaled = graph.call_function(scale_along, (present, gate, dim, outer, inner))
    node.replace_input_with(present, scaled)


def _gated_inputs(node: fx.Node) -> set[fx.Node]:
    chain = set()
    while node.target is scale_along:
        node = node.all_input_nodes[0]
        chain.add(node)
    return chain
