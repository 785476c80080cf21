"""Records: the arrays in a block, what they say, and which of them a model can be trained on.

A record is [prompt task, segments, (length, type, task) for each of them, token ids ...].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from sprunec.bmcook.data.arrays import Buffer, Integers, parse_array, parse_payload
from sprunec.bmcook.data.sets import END, RECORD, Block
from sprunec.checkpoint.safe_pickle import Refused
from sprunec.errors import InputError

MASKED, PREFIX = 0, 1
REQUIRED_TYPE = {MASKED: 1, PREFIX: 2}
ANSWER_TYPE = {3: 2, 4: 3, 5: 2, 6: 2}  # which segment is written, and so asked for, by task
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
    """What a model can take: a text of `room` tokens, and so many words, prompts and segment types."""

    room: int
    vocab_size: int
    prompt_types: int
    segment_types: int


def arrays_in(buffer: Buffer, block: Block, version: int, path: Path) -> Iterator[tuple[int, int, Integers]]:
    """The arrays of a block: where each begins in the file, how many bytes it has, and its numbers.

    Args:
        buffer: the bytes of the block.

    Raises:
        InputError: anything else is there; names the block and the byte.
    """
    at, end = 0, block.size
    while at < end and buffer[at] != END:
        if buffer[at] != RECORD:
            message = f"byte {buffer[at]:#04x} stands where a record or the block's end should be"
            raise _error(path, block.number, block.start + at, message)
        try:
            start, stop, values = _payload(buffer, at + 1, end, version)
        except Refused as error:
            message = f"a record holds {error}; nothing in it was executed"
            raise _error(path, block.number, block.start + at + 1, message) from error
        yield block.start + start, stop - start, values
        at = stop


def parse_record(values: Integers) -> Record:
    """Raises Refused: the numbers are no record."""
    count = int(values[1]) if values.size > 1 else 0
    head = 2 + 3 * count
    if count < 1 or head > values.size:
        raise Refused(f"{count} segments in {values.size} numbers")
    segments = values[2:head].reshape(count, 3)
    if int(segments[:, 0].min()) < 0 or sum(segments[:, 0].tolist()) != values.size - head:
        raise Refused(f"segments of {segments[:, 0].tolist()[:8]} tokens where {values.size - head} follow")
    return Record(int(values[0]), segments, values[head:])


def judge(record: Record, limits: Limits) -> Status:
    """Whether a record is of use. Raises Refused: it is not meant for this model."""
    _check_known(record, limits)
    if record.tokens.size > limits.room:
        return Status.TOO_LONG
    lengths, types, tasks = record.segments.T.tolist()
    asked = 0
    for length, kind, task in zip(lengths, types, tasks, strict=True):
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


def _payload(buffer: Buffer, start: int, end: int, version: int) -> tuple[int, int, Integers]:
    if version == 1:
        values, stop = parse_array(buffer, start, end)
        return start, stop, values
    length = int.from_bytes(buffer[start : min(start + _LENGTH_BYTES, end)], "little")
    stop = start + length
    if length < _LENGTH_BYTES or stop > end:
        raise Refused(f"{length:,} bytes by its own word, and the block has {end - start:,} left")
    return start + _LENGTH_BYTES, stop, parse_payload(buffer, start + _LENGTH_BYTES, stop)


def _error(path: Path, block: int, at: int, message: str) -> InputError:
    hint = "copy the file again; in a set of version 1, see too that data.block_size is the one it was written with"
    return InputError.at(path, f"block {block}, byte {at:,}: {message}", hint)


def refused(path: Path, block: int, at: int, error: Refused) -> InputError:
    """A record that is whole and yet not for this model."""
    hint = "give a set made for this model, or mask the file in the set"
    return InputError.at(path, f"block {block}, byte {at:,}: a record has {error}", hint)
