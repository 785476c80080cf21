"""Records: the arrays in a set's blocks, what they say, where they lie, and which of them a model can be trained on.

A record is [prompt task, segments, (length, type, task) for each of them, token ids ...]. An index is made once, so
that training reads the set itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sprunec.bmcook.data.arrays import Buffer, Integers, parse_array, parse_payload
from sprunec.bmcook.data.sets import END, RECORD, Block, DataSet
from sprunec.checkpoint.safe_pickle import Refused
from sprunec.durable import read_into
from sprunec.errors import InputError

MASKED, PREFIX = 0, 1
REQUIRED_TYPE = {MASKED: 1, PREFIX: 2}
ANSWER_TYPE = {3: 2, 4: 3, 5: 2, 6: 2}  # which segment is written, and so asked for, by task
OTHER_BLOCKS = "copy the file again; in a set of version 1, see too that data.block_size is the one it was written with"
OTHER_MODEL = "give a set made for this model, or mask the file in the set"
ROW = np.dtype(
    [
        ("file", "<i4"),
        ("block", "<i8"),
        ("offset", "<i8"),  # of the payload, in the file
        ("size", "<i8"),  # of the payload, in bytes
        ("tokens", "<i4"),
        ("task", "<i4"),
        ("status", "u1"),
    ]
)
Index = NDArray[Any]
_LENGTH_BYTES = 4


class Status(IntEnum):
    """Whether a record is used, and why not."""

    USED = 0
    TOO_LONG = 1
    SHORT_SEGMENT = 2
    NOTHING_ASKED = 3


@dataclass(frozen=True)
class Record:
    """One document: `segments` (n, 3) of length, type and task; `tokens` (sum of lengths,)."""

    task: int
    segments: Integers
    tokens: Integers


@dataclass(frozen=True)
class Limits:
    """What a model can take: a text of `room` tokens, and so many token ids, prompts and segment types."""

    room: int
    vocab_size: int
    prompt_types: int
    segment_types: int


class Records:
    """The records in use of a part of an index, by their number in the part.

    Args:
        index: rows of `ROW`; those not in use are left out.
        paths: the set's files.
    """

    def __init__(self, index: Index, paths: Sequence[Path]) -> None:
        self.index = index[index["status"] == Status.USED]
        self._paths = tuple(paths)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> Record:
        row = self.index[number]
        path, offset, size = self._paths[int(row["file"])], int(row["offset"]), int(row["size"])
        try:
            record = parse_record(parse_payload(_read(path, offset, size), 0, size))
            if record.tokens.size != row["tokens"]:
                raise Refused(f"{record.tokens.size} tokens")
        except Refused as error:
            message = f"byte {offset:,}: {error} where a record was of {int(row['tokens'])} tokens"
            raise InputError.at(path, message, "the set has changed: run again") from error
        return record

    def __iter__(self) -> Iterator[Record]:
        return (self[number] for number in range(len(self)))


def make_index(data_set: DataSet, limits: Limits) -> Index:
    """Give one row of `ROW` for each record, in stored order.

    Raises:
        InputError: a file is missing or not whole, or a record is broken or not meant for such a model.
    """
    data_set.check_files()
    parts = [np.zeros(0, dtype=ROW)]
    for block in data_set.blocks():
        rows, path = [], data_set.paths[block.file]
        for offset, size, values in _arrays(_read(path, block.start, block.size), block, data_set.version, path):
            try:
                record = parse_record(values)
                status = judge(record, limits)
            except Refused as error:
                raise InputError.at(path, f"{_at(block, offset)}: a record has {error}", OTHER_MODEL) from error
            rows.append((block.file, block.number, offset, size, record.tokens.size, record.task, status))
        parts.append(np.array(rows, dtype=ROW))
    return np.concatenate(parts)


def _read(path: Path, start: int, size: int) -> bytearray:
    content = bytearray(size)
    read_into(path, [(start, start + size)], memoryview(content))
    return content


def _arrays(buffer: Buffer, block: Block, version: int, path: Path) -> Iterator[tuple[int, int, Integers]]:
    """The arrays of a block: where each begins in the file, how many bytes it has, and its numbers.

    Raises:
        InputError: anything else is there; names the block and the byte.
    """
    position, end = 0, block.size
    while position < end and buffer[position] != END:
        if buffer[position] != RECORD:
            message = f"byte {buffer[position]:#04x} stands where a record or the block's end should be"
            raise InputError.at(path, f"{_at(block, block.start + position)}: {message}", OTHER_BLOCKS)
        position += 1
        try:
            start, stop, values = _payload(buffer, position, end, version)
        except Refused as error:
            message = f"a record holds {error}; nothing in it was executed"
            raise InputError.at(path, f"{_at(block, block.start + position)}: {message}", OTHER_BLOCKS) from error
        yield block.start + start, stop - start, values
        position = stop


def _at(block: Block, byte: int) -> str:
    return f"block {block.number}, byte {byte:,}"


def _payload(buffer: Buffer, start: int, end: int, version: int) -> tuple[int, int, Integers]:
    if version == 1:
        values, stop = parse_array(buffer, start, end)
        return start, stop, values
    length = int.from_bytes(buffer[start : min(start + _LENGTH_BYTES, end)], "little")
    stop = start + length
    if length < _LENGTH_BYTES or stop > end:
        raise Refused(f"{length:,} bytes by its own word, and the block has {end - start:,} left")
    return start + _LENGTH_BYTES, stop, parse_payload(buffer, start + _LENGTH_BYTES, stop)


def parse_record(values: Integers) -> Record:
    """Raise Refused if the numbers are no record."""
    count = int(values[1]) if values.size > 1 else 0
    head = 2 + 3 * count
    if count < 1 or head > values.size:
        raise Refused(f"{count} segments in {values.size} numbers")
    segments = values[2:head].reshape(count, 3)
    if int(segments[:, 0].min()) < 0 or sum(segments[:, 0].tolist()) != values.size - head:
        raise Refused(f"segments of {segments[:, 0].tolist()[:8]} tokens where {values.size - head} follow")
    return Record(int(values[0]), segments, values[head:])


def judge(record: Record, limits: Limits) -> Status:
    """Tell whether a record is of use. Raises Refused: it is not meant for this model."""
    _check_known(record, limits)
    if record.tokens.size > limits.room:
        return Status.TOO_LONG
    asked = 0
    for length, kind, task in record.segments.tolist():
        if task in REQUIRED_TYPE and length < 2:
            return Status.SHORT_SEGMENT
        asked += length - 1 if task in REQUIRED_TYPE or ANSWER_TYPE[task] == kind else 0
    return Status.USED if asked > 0 else Status.NOTHING_ASKED


def _check_known(record: Record, limits: Limits) -> None:
    if not 0 <= record.task < limits.prompt_types:
        raise Refused(f"prompt task {record.task}, and the model has prompt_types {limits.prompt_types}")
    for _, kind, task in record.segments.tolist():
        if task not in REQUIRED_TYPE and task not in ANSWER_TYPE:
            raise Refused(f"segment task {task}, which is none of 0, 1, 3, 4, 5 and 6")
        if REQUIRED_TYPE.get(task, kind) != kind:
            raise Refused(f"a segment of task {task} and type {kind}, not {REQUIRED_TYPE[task]}")
        if not 0 <= kind < limits.segment_types:
            raise Refused(f"segment type {kind}, and the model has segment_types {limits.segment_types}")
    tokens = record.tokens
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < limits.vocab_size:
        strange = tokens.max() if int(tokens.min()) >= 0 else tokens.min()
        raise Refused(f"token {strange}, and the model has vocab_size {limits.vocab_size}")
