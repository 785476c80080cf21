"""Write data sets that CPM-Live reads: a directory of version 1, from records or from text.

write_dataset(directory, records)            records as they are laid out in a set
make_dataset(directory, inputs, vocabulary)  text cut into pieces, half to fill in, half to go on from
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sprunec.bmcook.data.arrays import Integers, dump_array
from sprunec.bmcook.data.records import parse_record
from sprunec.bmcook.data.sets import CLASS, DEFAULT_BLOCK, LOADER, META, MODULE, RECORD
from sprunec.checkpoint.safe_pickle import Refused
from sprunec.data.text import json_records
from sprunec.durable import flush, naming, write_new
from sprunec.errors import InputError
from sprunec.families.vocabulary import Vocabulary
from sprunec.text_files import ANY_TEXT, read_lines

DATA = "data_0"
SHORTEST_PIECE = 32
FILL_IN, GO_ON = (1, 1, 0), (2, 2, 1)  # prompt task, segment type and segment task of a piece
_MARKS = 2


@dataclass
class Written:
    """What has been written: `unknown` tokens were left out, `tails` are pieces too short to keep."""

    records: int = 0
    tokens: int = 0
    blocks: int = 0
    documents: int = 0
    unknown: int = 0
    tails: int = 0


def write_dataset(
    directory: str | Path, records: Iterable[NDArray[Any] | Sequence[int]], *, block_size: int = DEFAULT_BLOCK
) -> Written:
    """Write a set that CPM-Live's training and source "cpm-live" read.

    Args:
        directory: must not exist; it appears when the set is whole.
        records: each (n,) whole numbers: prompt task, number of segments, length, type and task of each, token ids.
        block_size: in bytes; a set of version 1 doesn't tell it, so readers must be told any other than 16 MiB.

    Raises:
        InputError: there is something at `directory`, or a record is none, or larger than a block.
    """
    return _write(Path(directory), records, block_size, Written())


def make_dataset(
    directory: str | Path,
    inputs: Sequence[str | Path],
    vocabulary: Vocabulary,
    *,
    prompt_length: int = 32,
    max_length: int = 1024,
    seed: int = 1234,
    block_size: int = DEFAULT_BLOCK,
    progress: Callable[[Written], None] = lambda written: None,
) -> Written:
    """Turn text into a set as CPM-Live does: documents cut into pieces, each to be filled in or gone on from.

    Args:
        inputs: .jsonl files with a `text` string a line, else text files with one document a line, its line ends
            written <n>.
        prompt_length, max_length: a piece, its two marks and the prompt are `max_length` positions.
        progress: told how far it is, once a document.

    Raises:
        InputError: an input cannot be read, there is something at `directory`, or all documents are too short.
    """
    room = max_length - prompt_length - _MARKS
    if room < SHORTEST_PIECE:
        message = f"{max_length} positions leave {room} tokens, and pieces have at least {SHORTEST_PIECE}"
        raise InputError.in_option("--max-length", message, f"give at least {prompt_length + _MARKS + SHORTEST_PIECE}")
    written = Written()

    def texts() -> Iterator[str]:
        for path in inputs:
            for document in documents(Path(path)):
                yield document
                progress(written)

    return _write(Path(directory), _records(texts(), vocabulary, room, seed, written), block_size, written)


def _records(
    texts: Iterable[str], vocabulary: Vocabulary, room: int, seed: int, written: Written
) -> Iterator[Integers]:
    """The records of all documents; `written` follows in what they do not hold."""
    draw = np.random.Generator(np.random.Philox(key=[seed, 0]))
    for document in texts:
        ids = vocabulary.encode(document)
        known = ids[ids != vocabulary.unknown]
        written.documents += 1
        written.unknown += ids.size - known.size
        for start in range(0, known.size, room):
            piece = known[start : start + room]
            if piece.size < SHORTEST_PIECE:
                written.tails += 1
                continue
            prompt, segment, task = FILL_IN if draw.random() <= 0.5 else GO_ON
            head = [prompt, 1, piece.size + _MARKS, segment, task, vocabulary.begin]
            yield np.concatenate([head, piece, [vocabulary.end]]).astype(np.int64)


def documents(path: Path) -> Iterator[str]:
    """Give the documents of a file. Raises InputError: it cannot be read."""
    if path.suffix == ".jsonl":
        yield from (record["text"].strip() for record in json_records(path, ("text",)))
    else:
        yield from (line.strip().replace("<n>", "\n") for line in read_lines(path, "text", ANY_TEXT) if line.strip())


def _write(directory: Path, records: Iterable[Any], block_size: int, written: Written) -> Written:
    """Write a set beside its place, and rename it when all went well."""
    taken = InputError.at(directory, "there is something already", "name another directory, or remove it")
    if directory.exists():
        raise taken
    directory.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(None, f".{directory.name}.", directory.parent, ignore_cleanup_errors=True) as made:
        aside = Path(made)
        nbytes = _write_blocks(aside / DATA, records, block_size, written)
        if not written.records:
            why, hint = "", "give more, or longer, documents"
            if written.unknown:
                why = f": {written.unknown:,} tokens are unknown to the vocabulary"
                hint = "give the vocabulary of this language"
            raise InputError.at(directory, f"there is not one record to write{why}", hint)
        write_new(aside / META, _meta(written.blocks, nbytes, written.records))
        for path in (*aside.iterdir(), aside):
            flush(path)
        aside.chmod(0o755)
        try:
            aside.rename(directory)
        except OSError as error:
            if os.path.lexists(directory):
                raise taken from error
            raise
    return written


def _write_blocks(path: Path, records: Iterable[Any], block_size: int, written: Written) -> int:
    """Returns the bytes of all payloads."""
    nbytes = end = 0
    with naming(path), path.open("wb") as stream:
        for number, numbers in enumerate(records):
            values = np.asarray(numbers, dtype=np.int64)
            try:
                written.tokens += int(parse_record(values).tokens.size)
            except (Refused, IndexError) as error:
                raise InputError.at(f"record {number}", f"is none: {error}", "lay it out as a set's records") from error
            record = RECORD + dump_array(values)
            if len(record) + 1 > block_size:
                message = f"takes {len(record) + 1:,} bytes, and a block has {block_size:,}"
                raise InputError.at(f"record {number}", message, "give a larger block_size")
            left = block_size - end % block_size
            if len(record) + 1 > left:  # a block ends with a byte 0
                end += stream.write(bytes(left))
            end += stream.write(record)
            nbytes += len(record) - 1
            written.records += 1
        end += stream.write(bytes(-end % block_size))
        written.blocks = end // block_size
    return nbytes


def _meta(blocks: int, nbytes: int, records: int) -> bytes:
    """The pickle of a list of one FileInfo, as CPM-Live's own class writes itself, made without that class."""
    values = (LOADER, 1, DATA, 0, blocks, nbytes, records, False)
    loader, version, *state = (pickle.dumps(value, protocol=2)[2:-1] for value in values)  # the opcodes of each alone
    method = f"cbuiltins\ngetattr\n(c{MODULE}\n{CLASS}\n".encode() + loader + b"tR"
    return b"\x80\x04](" + method + b"(" + version + b"(" + b"".join(state) + b"ttRe."
