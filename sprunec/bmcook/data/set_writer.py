"""Write data sets that CPM-Live reads: a directory of version 1, from records or from text.

write_dataset(directory, records)            records as they are laid out in a set
make_dataset(directory, inputs, vocabulary)  text cut into pieces, half to fill in, half to go on from
"""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sprunec.bmcook.data.arrays import dump_array
from sprunec.bmcook.data.records import parse_record
from sprunec.bmcook.data.sets import DEFAULT_BLOCK, META, MODULE, RECORD
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
    directory = Path(directory)
    written = Written()
    with _new_directory(directory) as aside:
        nbytes = _write_blocks(aside / DATA, records, block_size, written)
        if not written.records:
            raise InputError.at(directory, "there is not one record to write", "give more, or longer, documents")
        write_new(aside / META, _meta(DATA, written.blocks, nbytes, written.records))
    return written


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
    if Path(directory).exists():
        raise _taken(Path(directory))
    room = max_length - prompt_length - _MARKS
    if room < SHORTEST_PIECE:
        message = f"{max_length} positions leave {room} tokens, and pieces have at least {SHORTEST_PIECE}"
        raise InputError.in_option("--max-length", message, f"give at least {prompt_length + _MARKS + SHORTEST_PIECE}")
    draw = np.random.Generator(np.random.Philox(key=[seed, 0]))
    counts = Written()
    texts = (text for path in inputs for text in documents(Path(path)))
    records = _records(texts, vocabulary, room, draw, counts, progress)
    try:
        written = write_dataset(directory, records, block_size=block_size)
    except InputError as error:
        if counts.documents and not counts.records and counts.unknown:
            message = f"there is not one record to write: {counts.unknown:,} tokens are unknown to the vocabulary"
            raise InputError.at(directory, message, "give the vocabulary of this language") from error
        raise
    return replace(written, documents=counts.documents, unknown=counts.unknown, tails=counts.tails)


def _records(
    texts: Iterable[str],
    vocabulary: Vocabulary,
    room: int,
    draw: np.random.Generator,
    counts: Written,
    progress: Callable[[Written], None],
) -> Iterator[NDArray[Any]]:
    """The records of all documents; `counts` follows."""
    for document in texts:
        ids = vocabulary.encode(document)
        known = ids[ids != vocabulary.unknown]
        counts.documents, counts.unknown = counts.documents + 1, counts.unknown + ids.size - known.size
        for start in range(0, known.size, room):
            piece = known[start : start + room]
            if piece.size < SHORTEST_PIECE:
                counts.tails += 1
                continue
            counts.records += 1
            prompt, segment, task = FILL_IN if draw.random() <= 0.5 else GO_ON
            head = [prompt, 1, piece.size + _MARKS, segment, task, vocabulary.begin]
            yield np.concatenate([head, piece, [vocabulary.end]]).astype(np.int64)
        progress(counts)


def documents(path: Path) -> Iterator[str]:
    """Give the documents of a file. Raises InputError: it cannot be read."""
    if path.suffix == ".jsonl":
        yield from (record["text"].strip() for record in json_records(path, ("text",)))
    else:
        yield from (line.strip().replace("<n>", "\n") for line in read_lines(path, "text", ANY_TEXT) if line.strip())


def _write_blocks(path: Path, records: Iterable[Any], block_size: int, written: Written) -> int:
    """Returns the bytes of all payloads."""
    nbytes = position = 0  # the latter in the block
    with naming(path), path.open("wb") as stream:
        for number, numbers in enumerate(records):
            values = np.asarray(numbers, dtype=np.int64)
            try:
                written.tokens += int(parse_record(values).tokens.size)
            except (Refused, IndexError) as error:
                raise InputError.at(f"record {number}", f"is none: {error}", "lay it out as a set's records") from error
            record = bytes([RECORD]) + dump_array(values)
            if len(record) + 1 > block_size:
                message = f"takes {len(record) + 1:,} bytes, and a block has {block_size:,}"
                raise InputError.at(f"record {number}", message, "give a larger block_size")
            if position + len(record) + 1 > block_size:  # a block ends with a byte 0
                stream.write(bytes(block_size - position))
                position, written.blocks = 0, written.blocks + 1
            stream.write(record)
            position, written.records = position + len(record), written.records + 1
            nbytes += len(record) - 1
        if position:
            stream.write(bytes(block_size - position))
            written.blocks += 1
    return nbytes


def _meta(name: str, blocks: int, nbytes: int, records: int) -> bytes:
    """The pickle of a list of one FileInfo, as CPM-Live's own class writes itself, made without that class."""
    state = b"(" + b"".join(_pickled(value) for value in (name, 0, blocks, nbytes, records, False)) + b"t"
    loader = b"cbuiltins\ngetattr\n(c" + MODULE.encode() + b"\nFileInfo\n" + _pickled("_load_from_state") + b"tR"
    return b"\x80\x04](" + loader + b"(" + _pickled(1) + state + b"tRe."


def _pickled(value: str | int) -> bytes:
    """One value's opcodes, without the start and the end of a pickle."""
    return pickle.dumps(value, protocol=2)[2:-1]


@contextmanager
def _new_directory(wanted: Path) -> Iterator[Path]:
    """A directory beside the wanted one, renamed to it when all went well, gone when not."""
    if wanted.exists():
        raise _taken(wanted)
    wanted.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{wanted.name}.", dir=wanted.parent))
    try:
        yield aside
        for path in (*aside.iterdir(), aside):
            flush(path)
        os.chmod(aside, 0o755)
        try:
            os.rename(aside, wanted)
        except OSError as error:
            if os.path.lexists(wanted):
                raise _taken(wanted) from error
            raise
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _taken(directory: Path) -> InputError:
    return InputError.at(directory, "there is something already", "name another directory, or remove it")
