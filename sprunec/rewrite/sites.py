"""Sites: the places in a block where something can be cut, read off the axes that flow through its graph.

A *unit* is an entry of an axis that parameters share and that ends in sums only: the axes that attention runs side by
side are heads, the ones it scores by and mixes are dim_head, any other inside a feed-forward is dim_ff. Where several
queries share keys and values, their axis is (kv_group, head in the group): a kv_group is cut in all projections, a head
in those of queries and of the output alone, the same number in every group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from sprunec.rewrite.ops.groups import Groups
from sprunec.rewrite.program import Program
from sprunec.units import INSIDE

SUBLAYER_OF = {"kv_group": "attention", **INSIDE}


@dataclass(frozen=True)
class Site:
    """One kind of unit in one block, with all that must change together.

    Attributes:
        groups: by method, the axis groups cut alike (two for dim_head: of the score and of the mixture).
        tensors: (name in the block, dim) of every tensor that loses slices.
        parameters_each: what one unit weighs.
        around: by method, the group in each entry of which `groups` has a run of the units.
    """

    block: str
    unit: str
    size: int
    groups: Mapping[str, tuple[int, ...]]
    tensors: tuple[tuple[str, int], ...]
    parameters_each: int
    around: Mapping[str, int] = field(default_factory=dict)

    @property
    def sublayer(self) -> str:
        return SUBLAYER_OF[self.unit]


@dataclass(frozen=True)
class Candidate:
    """The axis groups of what looks like a unit, and the group around them, whether or not they can be cut."""

    groups: tuple[int, ...]
    around: int | None = None


def find_sites(
    block: str, module: nn.Module, programs: Mapping[str, Program], shared: set[str]
) -> tuple[dict[str, Site], dict[str, int], tuple[str, ...]]:
    """Find the sites of a block by unit, the sizes of what looks like one but cannot be cut, and notes on why."""
    forward = programs["forward"]
    attentions = sum(residual.kind == "attention" for residual in forward.residuals)
    if attentions > 1:
        return {}, {}, (f"{block} has {attentions} attention sublayers; none is cut",)
    notes: list[str] = []
    parameters = {name: parameter.numel() for name, parameter in module.named_parameters()}
    sites: dict[str, Site] = {}
    fixed: dict[str, int] = {}
    found = candidates(forward)
    for unit, candidate in found.items():
        reason = _obstacle(forward, candidate, set(parameters), shared)
        if reason:
            notes.append(f"{block}: {unit} cannot be cut: {reason}")
            fixed[unit] = _count(forward, unit, candidate)
        else:
            sites[unit] = _site(block, unit, candidate, programs, parameters)
    # An attention sublayer may hold sums over units of some other kind, as in x + (attention + mlp).
    known = {group for candidate in found.values() for group in candidate.groups} | forward.groups.pinned.keys()
    known |= {group for core in forward.cores for dim in (*core.heads, core.scored, core.mixed) for group in dim}
    if not known.issuperset(_summed_over(forward, "attention")):
        notes.append(f"{block}: what is added together with the attention cannot be cut by itself")
    return sites, fixed, tuple(notes)


def candidates(program: Program) -> dict[str, Candidate]:
    """Find by unit what looks like one in a block's graph."""
    found: dict[str, Candidate] = {}
    owned, sizes = _owned(program), program.groups.sizes
    for core in program.cores:
        heads = list(dict.fromkeys(group for dim in core.heads for group in dim if group in owned))
        heads = [group for group in heads if sizes[group] > 1] or heads[-1:]
        if len(heads) == 2:
            found["kv_group"] = Candidate((heads[0],))
            found["head"] = Candidate((heads[1],), around=heads[0])
        elif heads:
            found["head"] = Candidate(tuple(heads))
        mixed = [group for group in core.mixed if group in owned]
        scored = [group for group in core.scored if group in owned] or list(core.scored)
        if scored and mixed:
            found["dim_head"] = Candidate(tuple(dict.fromkeys((*scored, *mixed))))
    hidden = _summed_over(program, "feed_forward")
    free = [group for group in hidden if group not in program.groups.pinned]
    if hidden:
        found["dim_ff"] = Candidate(tuple(dict.fromkeys(free or hidden)))
    return found


def _owned(program: Program) -> set[int]:
    """Give the groups that parameters and buffers have."""
    return {group for dims in program.groups.tensors.values() for dim in dims for group in program.groups.inside(dim)}


def _summed_over(program: Program, kind: str) -> list[int]:
    """Give the groups of parameters that sums inside a kind of sublayer go over, without the stream's own."""
    owned = _owned(program)
    return [
        group
        for residual in program.residuals
        if residual.kind == kind
        for contraction in program.contractions
        if contraction.node in residual.nodes
        for group in program.groups.values[contraction.operand][contraction.dim]
        if group in owned and group not in program.groups.values[residual.stream][-1]
    ]


def _count(program: Program, unit: str, candidate: Candidate) -> int:
    """Count the units of what cannot be cut: one attention's heads may be a product of several axes."""
    sizes = program.groups.sizes
    if unit == "head":
        around = () if candidate.around is None else (candidate.around,)
        return math.prod(sizes[group] for group in (*around, *candidate.groups))
    return max(sizes[group] for group in candidate.groups)


def _obstacle(program: Program, candidate: Candidate, parameters: set[str], shared: set[str]) -> str:
    """Tell why these groups cannot be cut as one site; empty when they can."""
    axes, groups = program.groups, candidate.groups
    sizes = {axes.sizes[group] for group in groups}
    for group in groups:
        if group in axes.pinned:
            return axes.pinned[group]
    if any(len({*dim} & {*groups}) > 1 for dims in axes.tensors.values() for dim in dims):
        return f"it is a product of axes, of sizes {[axes.sizes[group] for group in groups]}"
    if len(sizes) > 1:
        return f"it has axes of different sizes, {sorted(sizes)}"
    for group in groups:
        holding = axes.holding(group)
        holders = [name for name, _ in holding]
        if any(name in shared for name in holders):
            return "other blocks use the same tensor"
        if len(set(holders)) < len(holders):
            return "it is two dims of one tensor"
        if not any(group in axes.values[c.operand][c.dim] for c in program.contractions):
            return "nothing sums over it"
        if not parameters.intersection(holders):
            return "no parameter has it"
        if candidate.around is not None and not all(
            _lies_in(axes, axes.tensors[name][dim], group, candidate.around) for name, dim in holding
        ):
            return "it is not inside its group in every tensor"
    return ""


def _lies_in(axes: Groups, dim: Sequence[int], group: int, around: int) -> bool:
    """Tell whether a dim has `group`, or a sum with it, inside the entries of `around`."""
    for place, each in enumerate(dim):
        if each == around:
            return group in axes.inside(dim[place + 1 :])
        terms = [term for term in axes.sums.get(each, ()) if group in axes.inside(term)]
        if terms:
            return all(_lies_in(axes, term, group, around) for term in terms)
    return False


def _site(
    block: str, unit: str, candidate: Candidate, programs: Mapping[str, Program], parameters: Mapping[str, int]
) -> Site:
    axes, around = programs["forward"].groups, candidate.around
    tensors = [held for group in candidate.groups for held in axes.holding(group)]
    size = axes.sizes[candidate.groups[0]] * (1 if around is None else axes.sizes[around])
    parts = {
        name: parameters.get(name, 0) * max(axes.share(axes.tensors[name][dim], group) for group in candidate.groups)
        for name, dim in tensors
    }
    everywhere = [_in_all(programs, group) for group in candidate.groups]
    groups = {method: tuple(found[method] for found in everywhere) for method in programs}
    outside = {} if around is None else _in_all(programs, around)
    return Site(block, unit, size, groups, tuple(tensors), int(sum(parts.values()) / size), outside)


def _in_all(programs: Mapping[str, Program], group: int) -> dict[str, int]:
    """Find one method's group in all others.

    Programs number their groups alone; the same one has the same place in a tensor that they share.
    """
    axes = programs["forward"].groups
    name, dim = axes.holding(group)[0]
    place = axes.find(axes.tensors[name][dim], group)
    return {method: program.groups.at(program.groups.tensors[name][dim], place) for method, program in programs.items()}


def factors(axes: Groups, node: str, dim: int, group: int, around: int | None = None) -> tuple[int, int]:
    """Count the entries of a dim outside and inside one entry of `group`, or of the (around, group) before it."""
    groups = axes.values[node][dim]
    position = groups.index(group)
    first = position if around is None else groups.index(around)
    return axes.width(groups[:first]), axes.width(groups[position + 1 :])
