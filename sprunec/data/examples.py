"""From a record to what a model is shown and asked, and from examples to the rows of a batch.

Letters: n tokens of a text, P prompt columns, N columns of a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sprunec.bmcook.data.arrays import Integers
from sprunec.bmcook.data.records import ANSWER_TYPE, MASKED, PREFIX, Record
from sprunec.data.batches import IGNORED, Batch


@dataclass(frozen=True)
class Example:
    """A text, (n,) each: what may be seen from anywhere, the segment types, the token asked for or -100."""

    task: int
    tokens: Integers
    context: NDArray[np.bool_]
    segment: Integers
    targets: Integers


def draws(key: int, place: int, purpose: int = 0, part: int = 0) -> np.random.Generator:
    """Random numbers that depend on nothing but these four."""
    return np.random.Generator(np.random.Philox(key=[key, place], counter=[0, 0, part, purpose]))


def make_example(record: Record, draw: np.random.Generator) -> Example:
    """What is hidden is drawn here: tokens of masked segments, the ends of prefix segments; answers are hidden whole.

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
    return Example(record.task, record.tokens, context, segment, targets)


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


def first_fit(lengths: Iterable[int], rows: int, columns: int, shortest: int) -> tuple[list[list[int]], int]:
    """Put documents, in order, each into the first row where it leaves a column free, until one needs row `rows` + 1.

    Args:
        lengths: columns of each document, its prompt's among them; at most `columns`.
        shortest: none of them is shorter; a row that cannot take so much is not looked at again.

    Returns:
        the documents of each row, and how many were placed.
    """
    placed: list[list[int]] = []
    used: list[int] = []
    open_rows: list[int] = []
    count = 0
    for length in lengths:
        for row in open_rows:
            if used[row] + length < columns:
                used[row] += length
                placed[row].append(count)
                if used[row] + shortest >= columns:
                    open_rows.remove(row)
                break
        else:
            if len(used) == rows:
                break
            if length + shortest < columns:
                open_rows.append(len(used))
            used.append(length)
            placed.append([count])
        count += 1
    return placed, count


@dataclass(frozen=True)
class Packer:
    """Rows of P + n columns, several documents a row.

    Attributes:
        prompt_base: what is added to the prompt ids of the second and later documents of a row, which the model looks
            up among the words: 0 gives the words of these numbers; vocab_size gives the prompt's own embeddings.
    """

    prompt_length: int
    columns: int
    prompt_base: int

    def pack(self, rows: Sequence[Sequence[Example]]) -> Batch:
        """One row for each list of documents, which fit."""
        shape = len(rows), self.columns
        ids, segment, span = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        context, targets = np.zeros(shape, dtype=bool), np.full(shape, IGNORED, dtype=np.int64)
        lengths = np.zeros(len(rows), dtype=np.int64)
        prompt = np.arange(self.prompt_length)
        for row, documents in enumerate(rows):
            at = 0
            for ordinal, example in enumerate(documents):
                text = at + self.prompt_length
                end = text + example.tokens.size
                ids[row, at:text] = prompt + self.prompt_length * example.task + (self.prompt_base if ordinal else 0)
                ids[row, text:end], context[row, at:text] = example.tokens, True
                context[row, text:end], segment[row, text:end] = example.context, example.segment
                targets[row, text:end], span[row, at:end] = example.targets, ordinal
                at = end
            span[row, at:] = len(documents)
            lengths[row] = at
        columns = {"input": ids, "length": lengths, "context": context, "segment": segment, "span": span}
        return Batch({name: torch.from_numpy(value) for name, value in columns.items()}, torch.from_numpy(targets))
