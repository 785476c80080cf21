"""The weights behind units: what a unit's contribution leaves its sublayer through.

A head's context is summed over by the attention's output projection, a feed-forward dim by the one out of the
feed-forward. What is known of their inputs says how much a unit matters, and how the others can stand in for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx, nn

from sprunec.rewrite.keep import Keep, dim_indices, is_cut
from sprunec.rewrite.sites import factors
from sprunec.rewrite.trace import TracedBlock
from sprunec.units import Indices


@dataclass(frozen=True)
class Projection:
    """A sum over a dim that can be cut, of what a block computes times a weight of its own.

    Attributes:
        operand: the node that is summed over, along `dim`.
        result: the node that sums.
        tensor: the weight's name in the block; `along` is its dim that is summed over.
        groups: what that dim is the product of.
    """

    block: TracedBlock
    operand: str
    result: str
    dim: int
    tensor: str
    along: int
    groups: tuple[int, ...]

    @property
    def weight(self) -> Tensor:
        """(outputs, inputs), a view; the inputs are what is summed over."""
        return self.columns(self.block.tensors()[self.tensor].detach())

    def columns(self, tensor: Tensor) -> Tensor:
        """See a tensor of the weight's shape as (outputs, inputs), a view."""
        return tensor.movedim(self.along, -1).flatten(0, -2)

    def units(self, unit: str) -> tuple[int, int, int] | None:
        """Tell how the inputs are (outer, units, inner) of one kind of unit; None if none of it is in them."""
        site = self.block.sites.get(unit)
        inside = [group for group in self.groups if site is not None and group in site.groups["forward"]]
        if not inside:
            return None
        assert site is not None
        axes, around = self.block.forward.groups, site.around.get("forward")
        outer, inner = factors(axes, self.operand, self.dim, inside[0], around)
        return outer, site.size, inner

    def kept(self, keep: Keep) -> Indices | None:
        """Tell the inputs that are left where `keep` says what is of each group; None if all are."""
        groups = self.block.forward.groups
        return dim_indices(groups, self.groups, keep) if is_cut(groups, self.groups, keep) else None


def projections(block: TracedBlock) -> tuple[Projection, ...]:
    """Find those of all the block's sites."""
    nodes = {node.name: node for node in block.forward.graph.nodes}
    cuttable = {group for site in block.sites.values() for group in site.groups["forward"]}
    dims, tensors, found = block.forward.groups.tensors, block.tensors(), []
    for contraction in block.forward.contractions:
        operand, dim = contraction.operand, contraction.dim
        groups = block.forward.groups.values[operand][dim]
        # A weight is the parameter that goes into the sum beside the operand, if there is one.
        beside = [_weight(v) for v in nodes[contraction.node].all_input_nodes if v.name != operand]
        for name in (str(node.target) for node in beside if node.op == "get_attr" and cuttable & set(groups)):
            if isinstance(tensors.get(name), nn.Parameter) and groups in dims[name]:
                found.append(Projection(block, operand, contraction.node, dim, name, dims[name].index(groups), groups))
    return tuple(found)


def _weight(node: fx.Node) -> fx.Node:
    """Look through what only turns a weight round."""
    while turns(node):
        node = node.all_input_nodes[0]
    return node


def turns(node: fx.Node) -> bool:
    """Tell whether a node only turns a matrix round."""
    return node.target in ("t", "transpose", "permute") or (node.target is getattr and node.args[1] in ("T", "mT"))
