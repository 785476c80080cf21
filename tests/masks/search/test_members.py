"""The members of a choice are the best units by their scores, and of heads as many in each group that stays."""

from __future__ import annotations

import pytest
import torch

from sprunec.masks.search.members import left_by, members
from sprunec.plan.search.choices import Choice
from sprunec.units import Kept

WHOLE = Kept.all([{"kv_group": 3, "head": 9, "dim_ff": 6}, {"head": 4, "dim_head": 2, "dim_ff": 6}])
SCORES = {
    (0, "kv_group"): torch.tensor([1.0, 3.0, 2.0]),
    (0, "head"): torch.tensor([9.0, 1.0, 8.0, 5.0, 7.0, 6.0, 1.0, 2.0, 3.0]),
    (0, "dim_ff"): torch.tensor([5.0, 1.0, 4.0, 4.0, 0.0, 4.0]),
    (1, "head"): torch.tensor([1.0, 2.0, 2.0, 0.0]),
}
DIMS = tuple(range(6))


@pytest.mark.parametrize(
    ("choice", "kept"),
    [
        (Choice(0, "attention", {"kv_group": 3, "head": 9}), dict(WHOLE[0])),
        (Choice(0, "attention", {"kv_group": 2, "head": 6}), {"kv_group": (1, 2), "head": (3, 4, 5, 6, 7, 8)}),
        (Choice(0, "attention", {"kv_group": 3, "head": 6}), {"kv_group": (0, 1, 2), "head": (0, 2, 4, 5, 7, 8)}),
        (Choice(0, "attention", {"kv_group": 1, "head": 2}), {"kv_group": (1,), "head": (4, 5)}),
        (Choice(0, "feed_forward", {"dim_ff": 3}), {"dim_ff": (0, 2, 3)}),
        (Choice(1, "attention", {"head": 2, "dim_head": 2}), {"head": (1, 2), "dim_head": (0, 1)}),
        (Choice(1, "attention", {"head": 1, "dim_head": 2}), {"head": (1,), "dim_head": (0, 1)}),
    ],
)
def test_the_best_stay(choice: Choice, kept: dict[str, tuple[int, ...]]) -> None:
    assert members(SCORES, WHOLE, choice) == {**WHOLE[choice.layer], **kept}


def test_what_is_absent_has_no_units() -> None:
    assert members({}, WHOLE, Choice(0, "feed_forward", {})) == {"kv_group": (0, 1, 2), "head": tuple(range(9))}
    assert members({}, WHOLE, Choice(1, "attention", {})) == {"dim_ff": DIMS}
    assert members({}, WHOLE, Choice(1, "block", {})) == {}


def test_other_layers_stay_whole() -> None:
    left = left_by(SCORES, WHOLE, Choice(1, "attention", {}))
    assert left[0] == WHOLE[0] and not left.has(1, "attention") and left.has(1, "feed_forward")
