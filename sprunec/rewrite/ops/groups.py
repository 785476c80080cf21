"""What an analysis of axes ends in: groups of slices by number, that live or die together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from sprunec.rewrite.ops.axes import Axis, Dim, Layout, leaves


@dataclass(frozen=True)
class Groups:
    """The end of an analysis: every dim as a tuple of group numbers.

    Attributes:
        values: per graph node name, per dim, the groups whose product the dim is.
        tensors: the same per parameter or buffer name.
        sizes: entries of each group.
        pinned: why a group cannot be cut.
        sums: of a group that is one, the dims that lie behind each other in it.
    """

    values: dict[str, tuple[tuple[int, ...], ...]]
    tensors: dict[str, tuple[tuple[int, ...], ...]]
    sizes: dict[int, int]
    pinned: dict[int, str]
    sums: dict[int, tuple[tuple[int, ...], ...]] = field(default_factory=dict)

    def width(self, dim: Iterable[int]) -> int:
        return math.prod(self.sizes[group] for group in dim)

    def share(self, dim: Iterable[int], group: int) -> Fraction:
        """Tell the part of a dim's entries that `group` is in."""
        found = Fraction(0)
        for each in dim:
            whole = self.sizes[each]
            terms = (self.share(term, group) * self.width(term) / whole for term in self.sums.get(each, ()))
            found = max(found, Fraction(each == group), sum(terms, Fraction(0)))
        return found

    def holding(self, group: int) -> list[tuple[str, int]]:
        """Find the (tensor, dim) pairs that `group` is in: a factor of, or of a term."""
        dims = ((name, place, dim) for name, dims in self.tensors.items() for place, dim in enumerate(dims))
        return [(name, place) for name, place, dim in dims if group in self.inside(dim)]

    def find(self, dim: Sequence[int], group: int) -> tuple[int, ...]:
        """Tell where in a dim a group is: its place, and in a sum the term and the place there; empty for nowhere."""
        for place, each in enumerate(dim):
            if each == group:
                return (place,)
            for number, term in enumerate(self.sums.get(each, ())):
                if inner := self.find(term, group):
                    return (place, number, *inner)
        return ()

    def at(self, dim: Sequence[int], place: Sequence[int]) -> int:
        """Give the group that is where `find` says."""
        group = dim[place[0]]
        return self.at(self.sums[group][place[1]], place[2:]) if len(place) > 1 else group

    def inside(self, dim: Iterable[int]) -> set[int]:
        """Give the groups that a dim is made of, and those in the terms of its sums."""
        found, pending = set[int](), list(dim)
        while pending:
            group = pending.pop()
            found.add(group)
            pending.extend(each for term in self.sums.get(group, ()) for each in term)
        return found


@dataclass
class Numbering:
    """Gives every root axis a number, in order of first sight, so that two analyses of one graph agree."""

    numbers: dict[Axis, int] = field(default_factory=dict)

    def dim(self, dim: Dim) -> tuple[int, ...]:
        return tuple(self.numbers.setdefault(leaf, len(self.numbers)) for leaf in leaves(dim))

    def layout(self, layout: Iterable[Dim]) -> tuple[tuple[int, ...], ...]:
        return tuple(self.dim(dim) for dim in layout)

    def groups(self, values: dict[str, Layout], tensors: dict[str, Layout]) -> Groups:
        """Close an analysis: tensors are numbered first, so that the values' own axes come last."""
        numbered_tensors = {name: self.layout(layout) for name, layout in tensors.items()}
        numbered_values = {name: self.layout(layout) for name, layout in values.items()}
        sums: dict[int, tuple[tuple[int, ...], ...]] = {}
        while new := [axis for axis, number in self.numbers.items() if axis.terms and number not in sums]:
            sums |= {self.numbers[axis]: self.layout(axis.terms) for axis in new}
        sizes = {number: axis.size for axis, number in self.numbers.items()}
        pinned = {number: axis.pinned for axis, number in self.numbers.items() if axis.pinned}
        return Groups(numbered_values, numbered_tensors, sizes, pinned, sums)
