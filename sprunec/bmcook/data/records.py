"""Records: the arrays in a set's blocks, what they say, where they lie, and which of them a model can be trained on.

A record is [prompt task, segments, (length, type, task) for each of them, token ids ...]. An index is made once, so
that training reads the set itself.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sprunec.bmcook.data.arrays import Integers, parse_payload, read_array
from sprunec.bmcook.data.sets import END, RECORD, DataSet
from sprunec.checkpoint.safe_pickle import Refused
from sprunec.data.batches import answered
from sprunec.durable import read_into
from sprunec.errors import InputError
from sprunec.families.base import Document

MASKED, PREFIX = 0, 1  # the tasks of segments that are hidden in part, and of one type only; others are asked for whole
ASKED_TYPE = {MASKED: 1, PREFIX: 2, 3: 2, 4: 3, 5: 2, 6: 2}  # which type of segment is asked for, by task
OTHER_BLOCKS = "copy the file again; in a set of version 1, see too that data.block_size is the one it was written with"
OTHER_MODEL = "give a set made for this model, or mask the file in the set"
# Of each record its file, block, payload (where in the file, and how many bytes), number of tokens, task and status.
ROW = np.dtype("<i4, <i8, <i8, <i8, <i4, <i4, u1")
ROW.names = ("file", "block", "offset", "size", "tokens", "task", "status")
Index = NDArray[Any]
_LENGTH_BYTES = 4


class Status(IntEnum):
    """Whether a record is used, and why not."""

    USED = 0
    TOO_LONG = 1
    SHORT_SEGMENT = 2
    NOTHING_ASKED = 3


class Record(NamedTuple):
    """One document: `segments` (n, 3) of length, type and task; `tokens` (sum of lengths,)."""

    task: int
    segments: Integers
    tokens: Integers


class Limits(NamedTuple):
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
        file, _, offset, size, tokens, *_ = self.index[number].item()
        try:
            record = parse_record(parse_payload(_read(self._paths[file], offset, size)))
            if record.tokens.size != tokens:
                raise Refused(f"{record.tokens.size} tokens")
        except Refused as error:
            message = f"byte {offset:,}: {error} where a record was of {tokens} tokens"
            raise InputError.at(self._paths[file], message, "the set has changed: run again") from error
        return record


def make_index(data_set: DataSet, limits: Limits) -> Index:
    """Give one row of `ROW` for each record, in stored order.

    Raises:
        InputError: a file is missing or not whole, or a record is broken or not meant for such a model; names the
            block and the byte.
    """
    data_set.check_files()
    parts = [np.zeros(0, dtype=ROW)]
    for file, (info, path) in enumerate(zip(data_set.files, data_set.paths, strict=True)):
        for block in range(info.block_begin, info.block_end):
            start, rows = (block - info.block_begin) * info.block_size, []
            stream = io.BytesIO(_read(path, start, info.block_size))
            while (mark := stream.read(1)) not in (b"", END):
                at, told, hint = stream.tell(), "a record holds {}; nothing in it was executed", OTHER_BLOCKS
                try:
                    if mark != RECORD:
                        at, told = at - 1, "byte {} stands where a record or the block's end should be"
                        raise Refused(f"{mark[0]:#04x}")
                    offset, values = _payload(stream, data_set.version)
                    at, told, hint = offset, "a record has {}", OTHER_MODEL
                    record = parse_record(values)
                    status = judge(record, limits)
                except Refused as error:
                    message = f"block {block}, byte {start + at:,}: {told.format(error)}"
                    raise InputError.at(path, message, hint) from error
                size = stream.tell() - offset
                rows.append((file, block, start + offset, size, record.tokens.size, record.task, status))
            parts.append(np.array(rows, dtype=ROW))
    return np.concatenate(parts)


def _read(path: Path, start: int, size: int) -> bytearray:
    content = bytearray(size)
    read_into(path, [(start, start + size)], memoryview(content))
    return content


def _payload(stream: io.BytesIO, version: int) -> tuple[int, Integers]:
    """Read the array behind a record's mark -> where in the block its payload begins, and its numbers."""
    if version == 1:
        return stream.tell(), read_array(stream)
    left = len(stream.getbuffer()) - stream.tell()
    length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
    if not _LENGTH_BYTES <= length <= left:
        raise Refused(f"{length:,} bytes by its own word, and the block has {left:,} left")
    return stream.tell(), parse_payload(stream.read(length - _LENGTH_BYTES))


def parse_record(values: Integers) -> Record:
    """Raise Refused if the numbers are no record."""
    count = int(values[1]) if values.size > 1 else 0
    head = 2 + 3 * count
    if count < 1 or head > values.size:
        raise Refused(f"{count} segments in {values.size} numbers")
    segments = values[2:head].reshape(count, 3)
    lengths = segments[:, 0].tolist()
    if min(lengths) < 0 or sum(lengths) != values.size - head:
        raise Refused(f"segments of {lengths[:8]} tokens where {values.size - head} follow")
    return Record(int(values[0]), segments, values[head:])


def judge(record: Record, limits: Limits) -> Status:
    """Tell whether a record is of use. Raises Refused: it is not meant for this model."""
    if not 0 <= record.task < limits.prompt_types:
        raise Refused(f"prompt task {record.task}, and the model has prompt_types {limits.prompt_types}")
    short, asked = False, 0
    for length, kind, task in record.segments.tolist():
        if task not in ASKED_TYPE:
            raise Refused(f"segment task {task}, which is none of 0, 1, 3, 4, 5 and 6")
        if task in (MASKED, PREFIX) and kind != ASKED_TYPE[task]:
            raise Refused(f"a segment of task {task} and type {kind}, not {ASKED_TYPE[task]}")
        if not 0 <= kind < limits.segment_types:
            raise Refused(f"segment type {kind}, and the model has segment_types {limits.segment_types}")
        short |= task in (MASKED, PREFIX) and length < 2
        asked += length - 1 if kind == ASKED_TYPE[task] else 0
    tokens = record.tokens
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < limits.vocab_size:
        strange = tokens.max() if int(tokens.min()) >= 0 else tokens.min()
        raise Refused(f"token {strange}, and the model has vocab_size {limits.vocab_size}")
    if tokens.size > limits.room:
        return Status.TOO_LONG
    if short:
        return Status.SHORT_SEGMENT
    return Status.USED if asked > 0 else Status.NOTHING_ASKED


def make_example(record: Record, draw: np.random.Generator) -> Document:
    """Draw what is hidden: tokens of masked segments, the ends of prefix segments; answers are hidden whole.

    A hidden token stays what it is in the input; it is only not seen from before it. The first of a segment never is.
    """
    context, begin = np.ones(record.tokens.size, dtype=bool), 0
    for length, kind, task in record.segments.tolist():
        end = begin + length
        if task in (MASKED, PREFIX):
            count = int(draw.integers(1, length))
            order = (
                np.argsort(draw.random(length - 1), kind="stable") if task == MASKED else np.arange(length - 1)[::-1]
            )
            context[begin + 1 + order[:count]] = False
        elif kind == ASKED_TYPE[task]:
            context[begin + 1 : end] = False
        begin = end
    return answered(record.tokens, context, record.task, np.repeat(record.segments[:, 1], record.segments[:, 0]))
