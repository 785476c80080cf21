"""Axes: products that views split and ops unite."""

from __future__ import annotations

from sprunec.rewrite.ops.axes import Axis, fresh, leaves, regroup, unite
from sprunec.rewrite.ops.groups import Numbering


def test_a_view_splits_a_dim_into_its_factors() -> None:
    ((batch,), (width,)) = fresh((2, 24))
    result = regroup([[batch], [width]], (2, 4, 6))
    assert result[0] == [batch]
    assert [axis.size for axis in width.leaves()] == [4, 6]
    assert leaves(result[1]) + leaves(result[2]) == width.leaves()


def test_a_view_back_keeps_the_factors() -> None:
    (dim,) = fresh((24,))
    there = regroup([dim], (4, 6))
    (back,) = regroup(there, (24,))
    assert leaves(back) == dim[0].leaves()
    assert [axis.size for axis in back] == [4, 6]


def test_uniting_a_whole_with_its_parts_splits_the_whole() -> None:
    whole, heads, dims = Axis(24), Axis(4), Axis(6)
    unite([whole], [heads, dims])
    assert [axis.root() for axis in whole.leaves()] == [heads.root(), dims.root()]


def test_uniting_follows_earlier_splits() -> None:
    first, second = Axis(24), Axis(24)
    unite([first], [second])
    regroup([[first]], (3, 8))
    assert [axis.size for axis in second.leaves()] == [3, 8]
    assert second.leaves() == first.leaves()


def test_a_view_that_cuts_across_an_axis_pins_it() -> None:
    (dim,) = fresh((24,))
    four = regroup([dim], (4, 6))
    result = regroup(four, (3, 8))
    assert {axis.pinned for axis in dim[0].leaves()} == {"a view cuts across it"}
    assert [sum(axis.size for axis in each) for each in result] == [3, 8]


def test_dims_that_do_not_line_up_are_pinned_on_both_sides() -> None:
    left, right = [Axis(4), Axis(6)], [Axis(6), Axis(4)]
    unite(left, right)
    assert {axis.pinned for axis in leaves([*left, *right])} == {"two views split it into parts that do not match"}


def test_a_pin_reaches_parts_and_partners_once() -> None:
    whole, other = Axis(24), Axis(24)
    regroup([[whole]], (4, 6))
    whole.pin("first")
    whole.pin("second")
    unite([other], [whole])
    assert [axis.pinned for axis in other.leaves()] == ["first", "first"]


def test_a_split_inherits_the_pin() -> None:
    axis = Axis(24, "counted")
    regroup([[axis]], (4, 6))
    assert [part.pinned for part in axis.leaves()] == ["counted", "counted"]


def test_dims_of_one_stay_out_of_the_way() -> None:
    (dim,) = fresh((24,))
    wide = regroup([dim], (1, 24, 1))
    assert [[axis.size for axis in each] for each in wide] == [[1], [24], [1]]
    assert leaves(wide[1])[0] in dim[0].leaves()


def test_numbers_go_by_first_sight_and_name_products() -> None:
    heads, dims, width = Axis(4), Axis(6), Axis(10, "it leaves")
    tensors = {"weight": [[heads, dims], [width]]}
    groups = Numbering().groups({"x": [[width], [heads]]}, tensors)
    assert groups.tensors == {"weight": ((0, 1), (2,))}
    assert groups.values == {"x": ((2,), (0,))}
    assert groups.sizes == {0: 4, 1: 6, 2: 10}
    assert groups.pinned == {2: "it leaves"}
    assert groups.holding(1) == [("weight", 0)]
