"""Positions count that ask for what was not seen: no token of a run of 32 that has come before, wherever it stood."""

from __future__ import annotations

import torch

from sprunec.data.batches import IGNORED, Batch
from sprunec.data.unseen import RUN, unseen

TEXT = torch.arange(400)


def window(start: int, length: int = 100) -> Batch:
    return Batch({}, TEXT[start : start + length][None].clone())


def test_what_overlaps_is_left_out() -> None:
    (new,) = unseen([window(60)], [window(0), window(300)])
    assert new[0].tolist() == [False] * 40 + [True] * 60
    (new,) = unseen([window(0)], [window(100 - RUN), window(101 - RUN)])
    assert new[0].tolist() == [True] * (100 - RUN) + [False] * RUN


def test_a_few_tokens_may_come_again() -> None:
    (new,) = unseen([window(0)], [window(101 - RUN)])
    assert bool(new.all())


def test_what_is_not_asked_for_does_not_count() -> None:
    batch = window(0)
    batch.targets[0, 40] = IGNORED
    (new,) = unseen([batch], [window(0)])
    assert new[0].tolist() == [False] * 40 + [False] + [False] * 59
    (new,) = unseen([window(0)], [Batch({}, batch.targets.where(TEXT[:100] % 20 > 0, IGNORED))])
    assert bool(new.all())


def test_each_batch_is_marked() -> None:
    found = unseen([window(0, 50), window(200, 40)], [window(190, 60)])
    assert [some.shape for some in found] == [(1, 50), (1, 40)]
    assert [int(some.sum()) for some in found] == [50, 0]
