"""Sites: the places in a block where something can be cut, read off the axes that flow through its graph.

A *unit* is an entry of an axis that parameters share and that ends in sums only: the axes that attention runs side by
side are heads, the ones it scores by and mixes are dim_head, any other inside a feed-forward is dim_ff.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from sprunec.rewrite.ops.axes import Groups
from sprunec.rewrite.program import Program


@dataclass(frozen=True)
class Site:
    """One kind of unit in one block, with all that must change together.

    Attributes:
        groups: by method, the axis groups cut alike (two for dim_head: of the score and of the mixture).
        tensors: (name in the block, dim) of every tensor that loses slices.
        parameters_each: what one unit weighs.
    """

    block: str
    unit: str
    size: int
    groups: Mapping[str, tuple[int, ...]]
    tensors: tuple[tuple[str, int], ...]
    parameters_each: int


def find_sites(
    block: str, module: nn.Module, programs: Mapping[str, Program], shared: set[str]
) -> tuple[dict[str, Site], dict[str, int], tuple[str, ...]]:
    """Find the sites of a block by unit, the sizes of what looks like one but cannot be cut, and notes on why."""
    forward = programs["forward"]
    kinds = Counter(residual.kind for residual in forward.residuals)
    notes = [f"{block} has {count} {kind} sublayers; none is cut" for kind, count in sorted(kinds.items()) if count > 1]
    if notes:
        return {}, {}, tuple(notes)
    parameters = {name: parameter.numel() for name, parameter in module.named_parameters()}
    sites: dict[str, Site] = {}
    fixed: dict[str, int] = {}
    for unit, groups in _candidates(forward).items():
        reason = _obstacle(forward, groups, set(parameters), shared)
        if reason:
            notes.append(f"{block}: {unit} cannot be cut: {reason}")
            fixed[unit] = _count(forward, unit, groups)
        else:
            sites[unit] = _site(block, unit, groups, programs, parameters)
    # An attention sublayer may hold sums over units of some other kind, as in x + (attention + mlp).
    known = {group for site in sites.values() for group in site.groups["forward"]} | forward.groups.pinned.keys()
    if not known.issuperset(_summed_over(forward, "attention")):
        notes.append(f"{block}: what is added together with the attention cannot be cut by itself")
    return sites, fixed, tuple(notes)


def _candidates(program: Program) -> dict[str, tuple[int, ...]]:
    """Find what each unit's axis groups would be, whether or not they can be cut."""
    found: dict[str, tuple[int, ...]] = {}
    owned = _owned(program)
    for core in program.cores:
        heads = [group for dim in core.heads for group in dim if group in owned]
        scored = [group for group in core.scored if group in owned]
        mixed = [group for group in core.mixed if group in owned]
        if heads:
            found["head"] = tuple(dict.fromkeys(heads))
        if scored and mixed:
            found["dim_head"] = tuple(dict.fromkeys((*scored, *mixed)))
    hidden = _summed_over(program, "feed_forward")
    free = [group for group in hidden if group not in program.groups.pinned]
    if hidden:
        found["dim_ff"] = tuple(dict.fromkeys(free or hidden))
    return found


def _owned(program: Program) -> set[int]:
    """Give the groups that parameters and buffers have."""
    return {group for dims in program.groups.tensors.values() for dim in dims for group in dim}


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


def _count(program: Program, unit: str, groups: tuple[int, ...]) -> int:
    """Count the units of what cannot be cut: one attention's heads may be a product of several axes."""
    sizes = program.groups.sizes
    if unit == "head":
        return math.prod(sizes[group] for dim in program.cores[0].heads for group in dim if group in groups)
    return max(sizes[group] for group in groups)


def _obstacle(program: Program, groups: tuple[int, ...], parameters: set[str], shared: set[str]) -> str:
    """Tell why these groups cannot be cut as one site; empty when they can."""
    axes = program.groups
    sizes = {axes.sizes[group] for group in groups}
    for group in groups:
        if group in axes.pinned:
            return axes.pinned[group]
    if any(len({*dim} & {*groups}) > 1 for dims in axes.tensors.values() for dim in dims):
        return f"it is a product of axes, of sizes {[axes.sizes[group] for group in groups]}"
    if len(sizes) > 1:
        return f"it has axes of different sizes, {sorted(sizes)}"
    for group in groups:
        holders = [name for name, _ in axes.holding(group)]
        if any(name in shared for name in holders):
            return "other blocks use the same tensor"
        if len(set(holders)) < len(holders):
            return "it is two dims of one tensor"
        if not any(group in axes.values[c.operand][c.dim] for c in program.contractions):
            return "nothing sums over it"
        if not parameters.intersection(holders):
            return "no parameter has it"
    return ""


def _site(
    block: str, unit: str, groups: tuple[int, ...], programs: Mapping[str, Program], parameters: Mapping[str, int]
) -> Site:
    axes = programs["forward"].groups
    tensors = [held for group in groups for held in axes.holding(group)]
    size = axes.sizes[groups[0]]
    each = sum(parameters[name] for name in {name for name, _ in tensors} if name in parameters) // size
    everywhere: dict[str, list[int]] = {method: [] for method in programs}
    for group in groups:
        # Programs number their groups alone; the same one has the same position in a tensor that they share.
        name, dim = axes.holding(group)[0]
        position = axes.tensors[name][dim].index(group)
        for method, program in programs.items():
            everywhere[method].append(program.groups.tensors[name][dim][position])
    return Site(block, unit, size, {key: tuple(found) for key, found in everywhere.items()}, tuple(tensors), each)


def factors(axes: Groups, node: str, dim: int, group: int) -> tuple[int, int]:
    """Count the entries of a dim outside and inside one entry of `group`."""
    groups = axes.values[node][dim]
    position = groups.index(group)
    outer = math.prod(axes.sizes[g] for g in groups[:position])
    return outer, math.prod(axes.sizes[g] for g in groups[position + 1 :])
