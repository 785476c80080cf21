"""Which dims of which tensors belong together: axes, split by views and united by the ops they flow through.

A dim of a tensor is a product of axes: the output of a query projection is one dim of heads x dim_head until a view
splits it. An axis may be a sum, too: a fused projection's output is one until slices take queries, keys and values out
of it. Two axes that an op pairs up become one. What is left at the end are groups of slices, over parameters and
values, that live or die together. An axis whose entries an op mixes or counts is pinned: it cannot be cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

Dim = list["Axis"]
Layout = list[Dim]

LONE = "an axis of 1 in it is paired with nothing"


class Axis:
    """One factor of a dim; a node of a union-find forest whose roots may be split into smaller axes.

    Attributes:
        terms: dims that lie behind each other in this axis, where slices have taken it to pieces.
    """

    def __init__(self, size: int, pinned: str = "") -> None:
        self.size = size
        self.pinned = pinned
        self.terms: Layout = []
        self._parent: Axis | None = None
        self._parts: Dim | None = None

    def root(self) -> Axis:
        axis = self
        while axis._parent is not None:
            axis = axis._parent
        return axis

    def leaves(self) -> Dim:
        root = self.root()
        if root._parts is None:
            return [root]
        return [leaf for part in root._parts for leaf in part.leaves()]

    def pin(self, reason: str) -> None:
        for leaf in self.leaves():
            leaf.pinned = leaf.pinned or reason
            for term in leaf.terms:
                pin(term, reason)

    def split(self, first: int) -> None:
        """Make this leaf the product (first, size / first)."""
        root = self.root()
        assert root._parts is None
        assert root.size % first == 0
        with_one = 1 in (first, root.size // first)
        if root.terms and not with_one:
            root.pin("it is sliced, and viewed across the slices")
        root._parts = [Axis(first, root.pinned), Axis(root.size // first, root.pinned)]
        if with_one:
            root._parts[first == 1].terms = root.terms

    def slice(self, start: int, stop: int) -> Dim:
        """Make this leaf a sum, and give the part of it between two entries."""
        root = self.root()
        if not root.terms:
            bounds = sorted({0, start, stop, root.size})
            root.terms = [[Axis(end - begin, root.pinned)] for begin, end in pairwise(bounds)]
        found, begin = [], 0
        for term in root.terms:
            low, high = max(start - begin, 0), min(stop - begin, size(term))
            if low < high:
                found.append(piece(term, low, high))
            begin += size(term)
        if len(found) == 1:
            return found[0]
        whole = Axis(stop - start, root.pinned)
        whole.terms = found
        return [whole]

    def join(self, other: Axis) -> None:
        mine, others = self.root(), other.root()
        if mine is others:
            return
        if mine.terms and others.terms:
            _align(mine, others)
        others._parent, mine.terms = mine, mine.terms or others.terms
        reason = mine.pinned or others.pinned
        if reason:
            mine.pin(reason)


def leaves(dim: Iterable[Axis]) -> Dim:
    return [leaf for axis in dim for leaf in axis.leaves()]


def size(dim: Iterable[Axis]) -> int:
    return math.prod(axis.size for axis in dim)


def piece(dim: Dim, start: int, stop: int) -> Dim:
    """Give the part of a dim between two entries: a term of its outermost axis, where they lie between such."""
    first, *inner = leaves(dim)
    if (start, stop) == (0, size(dim)):
        return [first, *inner]
    if start % size(inner) or stop % size(inner):
        pin(dim, "a slice cuts across it")
        return [Axis(stop - start, "a slice cuts across it")]
    return [*first.slice(start // size(inner), stop // size(inner)), *inner]


def _align(ours: Axis, theirs: Axis) -> None:
    """Unite the terms of two sums, which may begin and end elsewhere."""
    bounds = {bound for axis in (ours, theirs) for bound in accumulate(map(size, axis.terms), initial=0)}
    for start, stop in pairwise(sorted(bounds)):
        unite(ours.slice(start, stop), theirs.slice(start, stop))


def fresh(shape: Sequence[int], pinned: str = "") -> Layout:
    return [[Axis(int(length), pinned)] for length in shape]


def pin(dim: Iterable[Axis], reason: str) -> None:
    for axis in dim:
        axis.pin(reason)


def unite(left: Dim, right: Dim) -> None:
    """Pair two dims entry by entry, splitting the coarser side where needed; those that no split lines up are pinned.

    Axes that fall within one another are united; dims of unlike sizes are never.
    """
    # Both sides are read from the front. A turn joins two leaves of one size, or splits one so that a later turn can;
    # leaves are looked up anew after each, since a split or a join on one side may be of an axis on the other, too.
    # Unlike sizes would go on splitting for ever, so they are refused first; sizes of 0 would divide by 0.
    ours, theirs = leaves(left), leaves(right)
    if size(ours) != size(theirs):
        pin([*ours, *theirs], f"{size(ours)} and {size(theirs)} of it are paired: not one to one")
        return
    if size(ours) == 0 and [axis.size for axis in ours] != [axis.size for axis in theirs]:
        pin([*ours, *theirs], "it has no entries")
        return
    while ours and theirs:
        a, b = ours[0], theirs[0]
        if a is not b and a.size != b.size and 1 in (a.size, b.size):
            _match_one(ours, theirs)
        elif a is b or a.size == b.size:
            _match_last_ones(ours, theirs)
            ours, theirs = leaves(ours), leaves(theirs)
            ours.pop(0).join(theirs.pop(0))
        elif a.size % b.size and b.size % a.size:
            pin([*ours, *theirs], "two views split it into parts that do not match")
            return
        else:
            big, small = (a, b) if a.size > b.size else (b, a)
            big.split(small.size)
        ours, theirs = leaves(ours), leaves(theirs)
    pin([*ours, *theirs], LONE)


def _match_one(ours: Dim, theirs: Dim) -> None:
    """Give an axis of 1, with which one side begins, to the other side too.

    An axis that stands on both sides cannot get it on one of them alone: then the 1 is paired with nothing.
    """
    with_one, without = (ours, theirs) if ours[0].size == 1 else (theirs, ours)
    if without[0] in with_one:
        with_one.pop(0).pin(LONE)
    else:
        without[0].split(1)


def _match_last_ones(ours: Dim, theirs: Dim) -> None:
    """Give an axis of 1, in which one side ends, to the other side too."""
    for long, short in ((ours, theirs), (theirs, ours)):
        if len(short) == 1 and len(long) > 1 and short[0] not in long:
            short[0].split(short[0].size)
            return


def meet(left: Dim, right: Dim) -> Dim:
    """Give what comes of two dims that an op broadcasts: a dim of 1 meets anything, others are united."""
    if size(left) == 1 != size(right):
        return right
    if size(right) != 1 or size(left) == 1:
        unite(left, right)
    return left


def regroup(layout: Layout, shape: Sequence[int]) -> Layout:
    """Lay out a view to `shape`: the same axes in order, split where a dim boundary falls inside one."""
    rest = [leaf for dim in layout for leaf in leaves(dim)]
    if size(rest) != math.prod(shape) or size(rest) == 0:
        reason = f"{size(rest)} entries of it are viewed as {math.prod(shape)}" if size(rest) else "it has no entries"
        pin(rest, reason)
        return fresh(shape, reason)
    result: Layout = []
    for length in shape:
        # Axes are taken whole while they fit, and split where they reach over the dim's end. Where sizes do not divide
        # each other, the end falls inside an entry of an axis: nothing from here on is known.
        taken: Dim = []
        while rest and (size(taken) < length or (length == 1 and not taken)):
            missing, here = length // size(taken), rest[0].size
            if max(missing, here) % min(missing, here):
                pin([*taken, *rest], "a view cuts across it")
                return [*result, *fresh(shape[len(result) :], "a view cuts across it")]
            if here > missing:
                rest[0].split(missing)
                rest = leaves(rest)
            taken.append(rest.pop(0))
        result.append(taken or [_last_one(result)])
    if result:
        result[-1].extend(rest)
    return result


def _last_one(layout: Layout) -> Axis:
    """Split a trailing 1 off the axis before it, so that heads of one dim still have that dim."""
    if not layout:
        return Axis(1)
    *before, last = leaves(layout[-1])
    last.split(last.size)
    same, one = last.leaves()
    layout[-1] = [*before, same]
    return one
