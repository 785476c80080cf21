"""CPM-Live's rules told again, token by token and row by row, to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np

from sprunec.bmcook.data.records import Limits
from sprunec.data.batches import IGNORED, Batch
from tests.conftest import TINY

PROMPT, COLUMNS, ROWS, WORDS = 5, 48, 3, TINY["vocab_size"]
LIMITS = Limits(COLUMNS - PROMPT, WORDS, TINY["prompt_types"], TINY["segment_types"])
Example = dict[str, list[Any]]


def naive_example(values: list[int], draw: np.random.Generator) -> Example:
    """What a record becomes, told token by token."""
    count = values[1]
    segments = [values[2 + 3 * i : 5 + 3 * i] for i in range(count)]
    ids, begin = values[2 + 3 * count :], 0
    made: Example = {"tokens": ids, "context": [], "segment": [], "targets": []}
    for length, kind, task in segments:
        context = [True] * length
        if task == 0:
            k = int(draw.integers(1, length))
            for place in np.argsort(draw.random(length - 1), kind="stable")[:k]:
                context[place + 1] = False
        elif task == 1:
            k = int(draw.integers(1, length))
            context = [i < length - k for i in range(length)]
        elif (task, kind) in ((3, 2), (4, 3), (5, 2), (6, 2)):
            context = [i == 0 for i in range(length)]
        made["context"] += context
        made["segment"] += [kind] * length
        for i in range(begin, begin + length):
            last = i == begin + length - 1
            made["targets"].append(IGNORED if last or context[i + 1 - begin] else ids[i + 1])
        begin += length
    return made


def naive_rows(lengths: list[int], rows: int, columns: int) -> list[list[list[int]]]:
    """CPM-Live's packer: all open rows are looked at; when there is one too many, the first ones leave."""
    emitted, opened = [], []
    for number, length in enumerate(lengths):
        for row in opened:
            if sum(lengths[i] for i in row) + length < columns:
                row.append(number)
                break
        else:
            opened.append([number])
        if len(opened) > rows:
            emitted.append(opened[:rows])
            opened = opened[rows:]
    return emitted


def naive_batch(rows: list[list[tuple[int, Example]]], base: int) -> dict[str, Any]:
    """Columns of packed rows, document by document."""
    made: dict[str, Any] = {name: [] for name in ("input", "context", "segment", "span", "targets", "length")}
    for row in rows:
        column: dict[str, list[Any]] = {name: [] for name in ("input", "context", "segment", "span", "targets")}
        for ordinal, (task, example) in enumerate(row):
            size = len(example["tokens"])
            column["input"] += [PROMPT * task + k + (base if ordinal else 0) for k in range(PROMPT)]
            column["input"] += example["tokens"]
            column["context"] += [True] * PROMPT + example["context"]
            column["segment"] += [0] * PROMPT + example["segment"]
            column["span"] += [ordinal] * (PROMPT + size)
            column["targets"] += [IGNORED] * PROMPT + example["targets"]
        used = len(column["input"])
        fill = {"input": 0, "context": False, "segment": 0, "span": len(row), "targets": IGNORED}
        for name, values in column.items():
            made[name].append(values + [fill[name]] * (COLUMNS - used))
        made["length"].append(used)
    return made


def as_lists(batch: Batch) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in batch.inputs.items()} | {"targets": batch.targets.tolist()}
