"""From a record to what a model is shown and asked, and which documents share a row."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from sprunec.bmcook.data.records import ANSWER_TYPE, MASKED, PREFIX, Record
from sprunec.data.batches import IGNORED
from sprunec.families.base import Document


def make_example(record: Record, draw: np.random.Generator) -> Document:
    """Draw what is hidden: tokens of masked segments, the ends of prefix segments; answers are hidden whole.

    A hidden token stays what it is in the input; it is only not seen from before it.
    """
    size = record.tokens.size
    context, segment = np.ones(size, dtype=bool), np.zeros(size, dtype=np.int64)
    targets = np.full(size, IGNORED, dtype=np.int64)
    begin = 0
    for length, kind, task in record.segments.tolist():
        end = begin + length
        segment[begin:end] = kind
        hidden = _hidden(length, kind, task, draw)
        context[begin:end] = ~hidden
        targets[begin : max(end - 1, begin)] = np.where(hidden[1:], record.tokens[begin + 1 : end], IGNORED)
        begin = end
    return Document(record.tokens, context, targets, record.task, segment)


def _hidden(length: int, kind: int, task: int, draw: np.random.Generator) -> NDArray[np.bool_]:
    """Which tokens of a segment are hidden: (length,); the first never is."""
    hidden = np.zeros(length, dtype=bool)
    if task in (MASKED, PREFIX):
        count = int(draw.integers(1, length))
        places = np.argsort(draw.random(length - 1), kind="stable") if task == MASKED else np.arange(length - 1)[::-1]
        hidden[1 + places[:count]] = True
    elif ANSWER_TYPE[task] == kind:
        hidden[1:] = True
    return hidden


def first_fit(lengths: Iterable[int], rows: int, width: int, shortest: int) -> tuple[list[list[int]], int]:
    """Put documents, in order, each into the first row where it leaves a position free, until one needs row `rows` + 1.

    Args:
        lengths: positions of each document, its prompt's among them; at most `width`.
        shortest: none of them is shorter; a row that cannot take so much is not looked at again.

    Returns:
        the documents of each row, and how many were placed.
    """
    placed: list[list[int]] = []
    used: list[int] = []
    open_rows: list[int] = []
    count = 0
    for length in lengths:
        row = next((row for row in open_rows if used[row] + length < width), None)
        if row is not None:
            used[row] += length
            placed[row].append(count)
            if used[row] + shortest >= width:
                open_rows.remove(row)
        elif len(used) == rows:
            break
        else:
            if length + shortest < width:
                open_rows.append(len(used))
            used.append(length)
            placed.append([count])
        count += 1
    return placed, count
