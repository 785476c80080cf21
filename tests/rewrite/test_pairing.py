"""Axes are paired in a bounded number of steps, whatever the dims; only dims that pair one to one are united."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprunec.rewrite.ops import axes
from sprunec.rewrite.ops.axes import LONE, Axis, Dim, fresh, leaves, meet, regroup, size, unite

STEPS = 2_000
Sizes = list[int]
sizes = st.lists(st.integers(1, 6), max_size=5)


def bounded(act: Callable[..., Any], *given: Any) -> Any:
    """Call `act`; splitting, joining or making axes without end fails instead."""
    steps = 0

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal steps
            steps += 1
            assert steps < STEPS, "axes are split without end"
            return method(*args)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("split", "join", "leaves"):
            patch.setattr(axes.Axis, name, counted(getattr(Axis, name)))
        return act(*given)


def dim(*lengths: int) -> Dim:
    return [Axis(length) for length in lengths]


def multiplied(lengths: Sizes, cuts: list[bool]) -> Sizes:
    """Neighbours put together where there is no cut between them."""
    result: Sizes = []
    for place, length in enumerate(lengths):
        if result and not cuts[place % len(cuts)]:
            result[-1] *= length
        else:
            result.append(length)
    return result


def pinned(dims: Dim) -> set[str]:
    return {axis.pinned for axis in leaves(dims)}


@given(sizes, st.lists(st.booleans(), min_size=5, max_size=5), st.lists(st.booleans(), min_size=5, max_size=5))
def test_products_of_the_same_factors_become_the_same_axes(
    lengths: Sizes, ours: list[bool], theirs: list[bool]
) -> None:
    left, right = dim(*multiplied(lengths, ours)), dim(*multiplied(lengths, theirs))
    bounded(unite, left, right)
    mine, others = leaves(left), leaves(right)
    assert [axis for axis in mine if axis.size > 1] == [axis for axis in others if axis.size > 1]
    assert pinned(left) | pinned(right) <= {"", LONE}
    assert size(mine) == size(others) == math.prod(lengths)


@given(sizes, sizes)
def test_dims_of_unlike_sizes_are_pinned_and_share_nothing(ours: Sizes, theirs: Sizes) -> None:
    left, right = dim(*ours), dim(*theirs)
    bounded(unite, left, right)
    if math.prod(ours) != math.prod(theirs):
        reason = f"{math.prod(ours)} and {math.prod(theirs)} of it are paired: not one to one"
        assert pinned([*left, *right]) == {reason}
        assert not set(leaves(left)) & set(leaves(right))
    assert (size(left), size(right)) == (math.prod(ours), math.prod(theirs))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.data())
def test_pairing_ends_where_axes_stand_on_both_sides(lengths: Sizes, data: st.DataObject) -> None:
    known = dim(*lengths)
    some = st.lists(st.sampled_from(known), max_size=5)
    for _ in range(3):
        left, right = data.draw(some), data.draw(some)
        before = size(left), size(right)
        bounded(unite, left, right)
        assert before == (size(left), size(right)) == (size(leaves(left)), size(leaves(right)))
        if before[0] == before[1] and pinned([*left, *right]) == {""}:
            assert leaves(left) == leaves(right)


@given(st.lists(st.integers(0, 3), max_size=4), st.lists(st.integers(0, 3), max_size=4))
def test_dims_without_entries_are_paired_or_pinned(ours: Sizes, theirs: Sizes) -> None:
    left, right = dim(*ours), dim(*theirs)
    bounded(unite, left, right)
    if math.prod(ours) == math.prod(theirs) == 0:
        assert pinned([*left, *right]) == ({""} if ours == theirs else {"it has no entries"})


@settings(max_examples=300)
@given(st.lists(st.integers(0, 7), max_size=4), st.lists(st.integers(0, 42), max_size=4), st.booleans())
def test_a_view_ends_and_gives_the_shape_asked_for(lengths: Sizes, shape: Sizes, twice: bool) -> None:
    layout = fresh(lengths)
    if twice:  # the same axis in two dims
        layout, lengths = [*layout, *layout], [*lengths, *lengths]
    result = bounded(regroup, layout, shape)
    assert [size(each) for each in result] == shape
    if math.prod(lengths) != math.prod(shape) or math.prod(shape) == 0:
        every = [axis for each in [*layout, *result] for axis in each]
        assert "" not in pinned(every)


@given(st.permutations([2, 3, 5, 1]), st.permutations([2, 3, 5, 1]))
def test_a_view_keeps_the_axes_that_it_does_not_cut_across(first: Sizes, second: Sizes) -> None:
    (whole,) = fresh((30,))
    there = bounded(regroup, [whole], first)
    back = bounded(regroup, there, second)
    assert [size(each) for each in back] == second
    if [n for n in first if n > 1] == [n for n in second if n > 1]:
        assert pinned(whole) == {""}
        assert [a for each in back for a in leaves(each) if a.size > 1] == [a for a in leaves(whole) if a.size > 1]
    else:
        assert "a view cuts across it" in pinned(whole)


UNLIKE: dict[str, tuple[Sizes, Sizes]] = {
    "grouped queries": ([8], [2]),
    "one side exhausted first": ([4, 6], [4]),
    "many against 1": ([1], [8]),
    "no factor in common": ([8], [3]),
    "nothing against something": ([0], [8]),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_dims_that_do_not_pair_are_pinned_with_both_sizes(name: str) -> None:
    for ours, theirs in (UNLIKE[name], UNLIKE[name][::-1]):
        left, right = dim(*ours), dim(*theirs)
        bounded(unite, left, right)
        reason = f"{math.prod(ours)} and {math.prod(theirs)} of it are paired: not one to one"
        assert pinned([*left, *right]) == {reason}


@pytest.mark.parametrize("behind", [False, True])
def test_a_1_beside_the_same_axis_is_paired_with_nothing(behind: bool) -> None:
    (whole,), (one,) = dim(24), dim(1)
    bounded(unite, [whole], [whole, one] if behind else [one, whole])
    assert whole.leaves() == [whole]
    assert (whole.pinned, one.pinned) == ("", LONE)


@pytest.mark.parametrize("behind", [False, True])
def test_a_1_that_the_other_side_lacks_is_given_to_it(behind: bool) -> None:
    (whole,), (one, other) = dim(24), dim(1, 24)
    bounded(unite, [whole], [other, one] if behind else [one, other])
    assert whole.leaves() == leaves([other, one] if behind else [one, other])
    assert pinned([whole]) == {""}


@given(sizes, sizes)
def test_a_dim_of_1_meets_anything(ours: Sizes, theirs: Sizes) -> None:
    left, right = dim(*ours), dim(*theirs)
    result = bounded(meet, left, right)
    if 1 in (size(left), size(right)) and size(left) != size(right):
        assert pinned([*left, *right]) <= {""}
        assert size(result) == max(size(left), size(right))
    elif size(left) != size(right):
        assert pinned([*left, *right]) != {""}
