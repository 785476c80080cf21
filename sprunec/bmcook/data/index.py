"""Where the records of a set lie and which of them are used: made once, so that training reads the set itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sprunec.bmcook.data.arrays import parse_payload
from sprunec.bmcook.data.records import Limits, Record, Status, arrays_in, judge, parse_record, refused
from sprunec.bmcook.data.sets import DataSet
from sprunec.checkpoint.safe_pickle import Refused
from sprunec.durable import read_into
from sprunec.errors import InputError

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


def make_index(data_set: DataSet, limits: Limits) -> Index:
    """One row of `ROW` for each record, in stored order.

    Raises:
        InputError: a file is missing or not whole, or a record is broken or not meant for such a model.
    """
    data_set.check_files()
    parts = [np.zeros(0, dtype=ROW)]
    for block in data_set.blocks():
        rows = []
        path, content = data_set.paths[block.file], bytearray(block.size)
        read_into(path, [(block.start, block.start + block.size)], memoryview(content))
        for offset, size, values in arrays_in(content, block, data_set.version, path):
            try:
                record = parse_record(values)
                status = judge(record, limits)
            except Refused as error:
                raise refused(path, block.number, offset, error) from error
            rows.append((block.file, block.number, offset, size, record.tokens.size, record.task, status))
        parts.append(np.array(rows, dtype=ROW))
    return np.concatenate(parts)


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
        content = bytearray(size)
        read_into(path, [(offset, offset + size)], memoryview(content))
        try:
            record = parse_record(parse_payload(content, 0, size))
            if record.tokens.size != row["tokens"]:
                raise Refused(f"{record.tokens.size} tokens")
        except Refused as error:
            message = f"byte {offset:,}: {error} where a record was of {int(row['tokens'])} tokens"
            raise InputError.at(path, message, "the set has changed: run again") from error
        return record

    def __iter__(self) -> Iterator[Record]:
        return (self[number] for number in range(len(self)))
