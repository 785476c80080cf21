"""Which entries of axes are kept, and so which of the dims that they make up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sprunec.errors import TraceError
from sprunec.rewrite.ops.groups import Groups
from sprunec.rewrite.trace import TracedBlock
from sprunec.units import Cut, Indices


@dataclass(frozen=True)
class Within:
    """What is kept of an axis inside each entry of another one, the same number in all of them."""

    around: int
    by: Mapping[int, Indices]

    def __len__(self) -> int:
        return len(next(iter(self.by.values())))


Keep = dict[int, Indices | Within]  # by group, only of those that lose something
Keeping = Mapping[int, Indices | Within]


def keeps(block: TracedBlock, kept: Cut, method: str) -> Keep:
    """Give what is kept by group number, for one method's graph."""
    result: Keep = {}
    for unit, indices in kept[block.index].items():
        site = block.sites.get(unit)
        if site is None:
            if len(indices) < block.fixed.get(unit, 0):
                raise TraceError(f"no {unit} can be cut: {'; '.join(block.notes)}")
        elif any(i >= site.size for i in indices):
            raise TraceError(f"{block.path} has {site.size} {unit} units, asked to keep number {max(indices)}")
        elif site.sublayer in absent_sublayers(block, kept) or len(indices) == site.size:
            continue
        elif site.around:
            ((group,), around) = site.groups[method], site.around[method]
            result[group] = _within(block, kept, around, indices)
        else:
            result |= dict.fromkeys(site.groups[method], indices)
    return result


def absent_sublayers(block: TracedBlock, kept: Cut) -> tuple[str, ...]:
    return tuple(kind for kind in block.sublayers() if not kept.has(block.index, kind))


def _within(block: TracedBlock, kept: Cut, around: int, indices: Indices) -> Indices | Within:
    """Sort units by the group that they lie in; the same number of each group must stay."""
    each = block.forward.groups.sizes[block.sites["head"].groups["forward"][0]]
    groups = kept[block.index].get("kv_group") or tuple(range(block.sites["head"].size // each))
    by = {group: tuple(i % each for i in indices if i // each == group) for group in groups}
    counts = sorted({len(members) for members in by.values()})
    if len(counts) > 1 or counts == [0]:
        some = " and ".join(map(str, counts))
        raise TraceError(f"{block.path}: its groups would keep {some} heads; each must keep as many, and one at least")
    same = {*by.values()}
    return same.pop() if len(same) == 1 else Within(around, by)


def dim_indices(groups: Groups, dim: Sequence[int], keep: Keeping) -> Indices:
    """Give the kept entries of a dim that is the product of `dim`'s groups."""
    return tuple(_entries(groups, tuple(dim), keep, {}).tolist())


def _entries(groups: Groups, dim: tuple[int, ...], keep: Keeping, at: Mapping[int, int]) -> Tensor:
    """Give them for one entry of each of the axes that stand around the dim."""
    if not dim:
        return torch.zeros(1, dtype=torch.long)
    first, rest = dim[0], dim[1:]
    own, width = _own_entries(groups, first, keep, at), groups.width(rest)
    if any(isinstance(kept, Within) and kept.around == first for kept in keep.values()):
        return torch.cat([i * width + _entries(groups, rest, keep, {**at, first: i}) for i in own.tolist()])
    return (own[:, None] * width + _entries(groups, rest, keep, at)[None, :]).flatten()


def _own_entries(groups: Groups, group: int, keep: Keeping, at: Mapping[int, int]) -> Tensor:
    if group in groups.sums:
        start, found = 0, []
        for term in groups.sums[group]:
            found.append(start + _entries(groups, term, keep, at))
            start += groups.width(term)
        return torch.cat(found)
    kept = keep.get(group, range(groups.sizes[group]))
    if isinstance(kept, Within):
        if kept.around not in at:
            raise TraceError("heads that differ from group to group are cut where their groups are not beside them")
        kept = kept.by[at[kept.around]]
    return torch.tensor(kept, dtype=torch.long)


def width(groups: Groups, dim: Sequence[int], keep: Keeping) -> int:
    """Count the entries of a dim that are kept."""
    result = 1
    for group in dim:
        terms = groups.sums.get(group)
        own = keep.get(group, range(groups.sizes[group]))
        result *= sum(width(groups, term, keep) for term in terms) if terms else len(own)
    return result


def is_cut(groups: Groups, dim: Sequence[int], keep: Keeping) -> bool:
    """Tell whether a dim loses entries."""
    return bool(keep.keys() & groups.inside(dim))
