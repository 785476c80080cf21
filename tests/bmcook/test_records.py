"""From records to examples, and which documents share a row."""

from __future__ import annotations

import numpy as np
import pytest

from sprunec.bmcook.data.records import Status, judge, make_example, parse_record
from sprunec.bmcook.data.stream import first_fit
from sprunec.checkpoint.safe_pickle import Refused
from sprunec.data.batches import draws
from tests.helpers.naive import COLUMNS, LIMITS, PROMPT, naive_example, naive_rows

MIXED = [
    [1, 1, 9, 1, 0, *range(10, 19)],
    [2, 1, 7, 2, 1, *range(20, 27)],
    [3, 2, 5, 1, 3, 6, 2, 3, *range(30, 41)],
    [3, 3, 4, 1, 4, 3, 2, 4, 5, 3, 4, *range(50, 62)],
    [1, 2, 4, 1, 5, 4, 2, 5, *range(60, 68)],
    [1, 2, 1, 1, 6, 4, 2, 6, *range(70, 75)],
    [2, 2, 5, 1, 0, 6, 2, 1, *range(80, 91)],
]


@pytest.mark.parametrize("number", range(len(MIXED)))
def test_what_is_hidden_and_asked_is_what_the_rules_say(number: int) -> None:
    for place in range(20):
        example = make_example(parse_record(np.array(MIXED[number])), draws(1, place))
        wanted = naive_example(MIXED[number], draws(1, place))
        assert {name: getattr(example, name).tolist() for name in wanted} == wanted
        assert example.task == MIXED[number][0]


def test_every_amount_of_masking_happens_and_the_first_token_is_always_seen() -> None:
    record = parse_record(np.array([1, 1, 6, 1, 0, *range(10, 16)]))
    hidden = [~make_example(record, draws(0, place)).context for place in range(400)]
    assert {int(each.sum()) for each in hidden} == {1, 2, 3, 4, 5}
    assert not any(each[0] for each in hidden)
    assert all(np.array(hidden).any(0)[1:])


def test_prefixes_end_everywhere() -> None:
    record = parse_record(np.array([2, 1, 6, 2, 1, *range(10, 16)]))
    seen = [make_example(record, draws(0, place)).context for place in range(200)]
    assert {tuple(each.tolist()) for each in seen} == {tuple(i < k for i in range(6)) for k in range(1, 6)}


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ([2, 1, COLUMNS - PROMPT, 2, 1, *[10] * (COLUMNS - PROMPT)], Status.USED),
        ([2, 1, COLUMNS - PROMPT + 1, 2, 1, *[10] * (COLUMNS - PROMPT + 1)], Status.TOO_LONG),
        ([2, 1, 1, 2, 1, 10], Status.SHORT_SEGMENT),
        ([1, 1, 0, 1, 0], Status.SHORT_SEGMENT),
        ([1, 1, 2, 1, 0, 10, 11], Status.USED),
        ([3, 1, 3, 1, 3, 10, 11, 12], Status.NOTHING_ASKED),
        ([3, 2, 3, 1, 3, 1, 2, 3, 10, 11, 12, 13], Status.NOTHING_ASKED),
    ],
)
def test_records_that_cannot_be_used_are_told_apart(values: list[int], status: Status) -> None:
    assert judge(parse_record(np.array(values)), LIMITS) == status


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([2, 1, 3, 2, 2, 10, 11, 12], "segment task 2"),
        ([2, 1, 3, 2, 7, 10, 11, 12], "segment task 7"),
        ([1, 1, 3, 2, 0, 10, 11, 12], "task 0 and type 2, not 1"),
        ([2, 1, 3, 1, 1, 10, 11, 12], "task 1 and type 1, not 2"),
        ([4, 1, 3, 2, 1, 10, 11, 12], "prompt task 4"),
        ([-1, 1, 3, 2, 1, 10, 11, 12], "prompt task -1"),
        ([2, 1, 3, 6, 3, 10, 11, 12], "segment type 6"),
        ([2, 1, 3, 2, 1, 10, 97, 12], "token 97"),
        ([2, 1, 3, 2, 1, 10, -2, 12], "token -2"),
        ([2, 1, 4, 2, 1, 10, 11, 12], "segments of"),
        ([2, 0, 10, 11, 12], "0 segments"),
        ([2, 1 << 60, 10, 11, 12], "segments in"),
        ([2, 2, 5, 2, 1, -2, 2, 1, 10, 11, 12], "segments of"),
        ([2], "0 segments"),
    ],
)
def test_records_not_meant_for_the_model_are_refused(values: list[int], words: str) -> None:
    with pytest.raises(Refused, match=words):
        judge(parse_record(np.array(values)), LIMITS)


def test_packing_is_first_fit_with_one_row_too_many_as_the_sign_to_emit() -> None:
    draw = np.random.default_rng(5)
    for rows, columns in ((1, 48), (3, 48), (8, 100), (4, 24)):
        lengths = draw.integers(7, min(columns, 40) + 1, 500).tolist()
        wanted, start, found = naive_rows(lengths, rows, columns), 0, []
        while start + rows < len(lengths):
            placed, count = first_fit(lengths[start:], rows, columns, min(lengths))
            found.append([[start + place for place in row] for row in placed])
            start += count
        assert found[: len(wanted)] == wanted
        assert len(wanted) > 10
