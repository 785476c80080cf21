"""Describe blocks that nothing is known of: which units the dims of their tensors are made of, by their graphs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from sprunec.families.block_calls import BlockUnits, CalledBlock, Terms, UnitReader
from sprunec.rewrite.ops.groups import Groups
from sprunec.rewrite.sites import candidates
from sprunec.rewrite.trace import TracedBlock, trace_called


def read_units(called: Sequence[CalledBlock]) -> tuple[BlockUnits, ...]:
    """Trace blocks, and say of every dim of their parameters what it is made of.

    Raises:
        TraceError: a block cannot be traced; names the module, the source line, and what it does there.
    """
    blocks = trace_called(None, called)
    fixed = {unit: _reason(block, unit) for block in reversed(blocks) for unit in block.fixed}
    return tuple(_units(block, fixed) for block in blocks)


def _units(block: TracedBlock, fixed: Mapping[str, str]) -> BlockUnits:
    """Count a block's units; those that cannot be cut in another one are numbers."""
    program = block.forward
    counts = {unit: site.size for unit, site in block.sites.items()} | dict(block.fixed)
    named = {group: unit for unit in block.sites.keys() - fixed for group in candidates(program)[unit].groups}
    kinds = {name: residual.kind for residual in program.residuals for name in residual.tensors}
    tensors: dict[str, dict[str, tuple[Terms, ...]]] = {}
    for name, parameter in block.module.named_parameters():
        dims = program.groups.tensors.get(name)
        terms = (
            [((size, ()),) for size in parameter.shape]
            if dims is None
            else [_terms(program.groups, dim, named) for dim in dims]
        )
        tensors.setdefault(kinds.get(name, ""), {})[name] = tuple(terms)
    return BlockUnits(counts, tensors, fixed)


def _reason(block: TracedBlock, unit: str) -> str:
    start = f"{block.path}: {unit} cannot be cut: "
    return next((note.removeprefix(start) for note in block.notes if note.startswith(start)), "its graph forbids it")


def _terms(groups: Groups, dim: Sequence[int], named: Mapping[int, str]) -> Terms:
    """Multiply out the groups that a dim is made of; those without a unit's name are a number."""
    found: list[tuple[int, tuple[str, ...]]] = [(1, ())]
    for group in dim:
        terms: Terms = ((1, (named[group],)),) if group in named else ((groups.sizes[group], ()),)
        if group in groups.sums:
            terms = tuple(each for term in groups.sums[group] for each in _terms(groups, term, named))
        found = [(n * m, (*left, *right)) for n, left in found for m, right in terms]
    sums = Counter[tuple[str, ...]]()
    for number, units in found:  # the heads of all groups are counted, and not those of each
        sums[tuple(unit for unit in units if unit != "kv_group" or "head" not in units)] += number
    return tuple((number, units) for units, number in sums.items())


BLOCK_UNITS = UnitReader("traced", read_units)
