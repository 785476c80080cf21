"""Put gates into traced blocks: one multiplication per unit, where its contribution leaves.

A head's gate multiplies its context before the output projection, a feed-forward dim's the activation before w_out, a
dim_head's both the query and the context, a sublayer's (or a whole block's) its output before the residual add. This
is how masks are trained, and how a masked model is computed; it shares nothing with the recipe that cuts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from sprunec.errors import TraceError
from sprunec.families.cpm_ant.config import LayerKept
from sprunec.rewrite.sites import factors
from sprunec.rewrite.surgery import build, index_device
from sprunec.rewrite.trace import TracedBlock

SUBLAYERS = ("attention", "feed_forward")
UNITS = ("block", *SUBLAYERS, "head", "dim_head", "dim_ff")


def scale_along(x: Tensor, gate: Tensor, dim: int, outer: int, inner: int) -> Tensor:
    """Multiply the entries of `x` along `dim`, which is (outer, units, inner), by `gate` (units,)."""
    factor = gate.view(1, -1, 1).expand(outer, -1, inner).reshape(-1)
    shape = [1] * x.dim()
    shape[dim] = -1
    return x * factor.view(shape).to(x.dtype)


class Gates:
    """The gates of a model, by block number and unit; setting one changes what the model computes."""

    def __init__(self, sizes: Mapping[tuple[int, str], int], modules: Mapping[int, nn.Module]) -> None:
        self.sizes = dict(sizes)
        self._modules = dict(modules)

    def set(self, block: int, unit: str, gate: Tensor) -> None:
        """gate (units,), 1 is open; it may require gradients."""
        setattr(self._modules[block].gates, unit, gate)


def insert_gates(model: nn.Module, blocks: Sequence[TracedBlock], units: Iterable[str]) -> Gates:
    """Replace the traced blocks of `model`, in place, by gated ones over the same parameters; all gates open."""
    wanted = tuple(units)
    sizes: dict[tuple[int, str], int] = {}
    modules: dict[int, nn.Module] = {}
    for block in blocks:
        here = {unit: _size(block, unit) for unit in wanted if _size(block, unit)}
        if here:
            modules[block.index] = _gated(block, here)
            model.set_submodule(block.path, modules[block.index])
        sizes |= {(block.index, unit): size for unit, size in here.items()}
    return Gates(sizes, modules)


def mask(model: nn.Module, blocks: Sequence[TracedBlock], kept: Sequence[LayerKept]) -> nn.Module:
    """The model at full size with everything outside `kept` multiplied by 0, in place."""
    devices = {block.index: index_device(block) for block in blocks}
    gates = insert_gates(model, blocks, [unit for unit in UNITS if unit != "block"])
    for (index, unit), size in gates.sizes.items():
        gate = torch.zeros(size, device=devices[index])
        gate[list(_kept_units(kept[index], unit))] = 1.0
        gates.set(index, unit, gate)
    for block in blocks:
        _check_sites(block, kept[block.index])
    return model


def _kept_units(kept: LayerKept, unit: str) -> tuple[int, ...]:
    """Sublayers are one unit each, kept unless the layer says that they are absent."""
    indices = {
        "attention": (0,) if kept.heads is not None else (),
        "feed_forward": (0,) if kept.dim_ff is not None else (),
        "head": kept.heads,
        "dim_head": kept.dim_head,
        "dim_ff": kept.dim_ff,
    }[unit]
    return indices or ()


def _check_sites(block: TracedBlock, kept: LayerKept) -> None:
    """What cannot be cut may be kept whole."""
    for unit, kind in (("head", "attention"), ("dim_ff", "feed_forward")):
        if kind not in block.sublayers() or unit in block.sites or not _kept_units(kept, kind):
            continue
        if len(_kept_units(kept, unit)) != block.fixed.get(unit):
            raise TraceError(f"{block.path}: no {unit} can be cut here: {'; '.join(block.notes)}")


def _size(block: TracedBlock, unit: str) -> int:
    if unit == "block":
        return int(bool(block.sublayers()))
    if unit in SUBLAYERS:
        return int(unit in block.sublayers())
    return block.sites[unit].size if unit in block.sites else 0


def _gated(block: TracedBlock, sizes: Mapping[str, int]) -> fx.GraphModule:
    graph = copy.deepcopy(block.forward.graph)
    for unit in sizes:
        if unit in block.sites:
            _gate_sums(block, graph, unit)
        else:
            _gate_branches(block, graph, unit)
    state = block.tensors()
    device = index_device(block)
    gates = {f"gates.{unit}": torch.ones(size, device=device) for unit, size in sizes.items()}
    kept = set(block.module.state_dict(keep_vars=True))
    saved = {name: tensor for name, tensor in state.items() if name in kept}
    others = {name: tensor for name, tensor in state.items() if name not in kept}
    return build({"forward": graph}, gates | others, saved, block)


def _gate_sums(block: TracedBlock, graph: fx.Graph, unit: str) -> None:
    """Gate what goes into every sum over the unit's axes."""
    nodes = {node.name: node for node in graph.nodes}
    groups = block.forward.groups
    for contraction in block.forward.contractions:
        along = groups.values[contraction.operand][contraction.dim]
        for group in block.sites[unit].groups["forward"]:
            if group in along:
                place = factors(groups, contraction.operand, contraction.dim, group)
                _scale_input(graph, nodes[contraction.node], nodes[contraction.operand], unit, contraction.dim, *place)


def _scale_input(graph: fx.Graph, node: fx.Node, operand: fx.Node, unit: str, dim: int, outer: int, inner: int) -> None:
    """Gate `operand` on its way into `node` only; an operand gated before is found behind its gate."""
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


def _gate_branches(block: TracedBlock, graph: fx.Graph, unit: str) -> None:
    nodes = {node.name: node for node in graph.nodes}
    for residual in block.forward.residuals:
        if unit in ("block", residual.kind):
            add, branch = nodes[residual.add], nodes[residual.branch]
            with graph.inserting_before(add):
                gate = graph.get_attr(f"gates.{unit}")
                scaled = graph.call_function(scale_along, (branch, gate, -1, 1, 1))
            _replace_branch(add, branch, scaled)


def _replace_branch(add: fx.Node, branch: fx.Node, scaled: fx.Node) -> None:
    """Block and sublayer gates may stack on one branch."""
    present = next(v for v in add.all_input_nodes if v is branch or branch in _gated_inputs(v))
    scaled.args = (present, *scaled.args[1:])
    add.replace_input_with(present, scaled)
