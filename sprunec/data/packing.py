"""Rows of whole documents, several in each where they fit, gone through in an order of each epoch's own."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sprunec.data.batches import IGNORED, Batch, Packer, Sample, draws
from sprunec.data.saved import GrowingIds, SavedIds
from sprunec.data.tokenizer import Tokenizer, read_tokenizer
from sprunec.durable import naming
from sprunec.errors import InputError
from sprunec.families.base import Document

PARTS = ("train", "held_out")
LEAST = 2  # tokens of a piece that asks for one


class Documents(Protocol):
    """Documents by number; `target_counts` (documents,): of how many tokens each asks for."""

    def __len__(self) -> int: ...

    def document(self, number: int) -> Document: ...

    @property
    def target_counts(self) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class Rows:
    """Which documents stand in a row: in row i those of `order[starts[i]:starts[i + 1]]`."""

    order: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> NDArray[np.int64]:
        return self.order[self.starts[number] : self.starts[number + 1]]

    @classmethod
    def of_one(cls, documents: int) -> Rows:
        return cls(np.arange(documents), np.arange(documents + 1))


def fit(lengths: NDArray[np.int64], width: int, least: int = 1) -> Rows:
    """Fit documents into rows: the longest first, each where the least is left over (best-fit decreasing).

    So whole documents waste next to nothing, and none is truncated to fill a row (Ding et al. 2024). Rows come out by
    their first documents, and these in order.

    Args:
        lengths: at most `width` each; shorter ones than `least` are left out.
    """
    row_of, rows = np.full(len(lengths), -1), 0
    left: dict[int, list[int]] = {}  # by what is left over, the rows
    there = 0  # the bits of these numbers
    for number in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[number])
        if size < least:
            break
        if fits := there >> size:
            space = size + (fits & -fits).bit_length() - 1
            row = left[space].pop()
            there ^= 0 if left[space] else 1 << space
        else:
            space, row, rows = width, rows, rows + 1
        row_of[number] = row
        left.setdefault(space - size, []).append(row)
        there |= 1 << (space - size)
    used = np.flatnonzero(row_of >= 0)
    _, first, where = np.unique(row_of[used], return_index=True, return_inverse=True)
    place = np.argsort(np.argsort(first))[where]
    order = np.argsort(place, kind="stable")
    return Rows(used[order], np.searchsorted(place[order], np.arange(rows + 1)))


def padding(lengths: NDArray[np.int64], rows: Rows, width: int) -> float:
    """Tell which share of the positions of rows is padding."""
    return 1.0 - float(lengths[rows.order].sum()) / (len(rows) * width)


@dataclass(frozen=True)
class EpochData:
    """Batches of rows of documents; each epoch goes through all of them in an order of its own."""

    train: Documents
    held_out: Documents
    tokenizer: Tokenizer
    packer: Packer
    batch_size: int
    seed: int
    rows: tuple[Rows, Rows] | None = None  # of both parts; None: a document a row

    def _rows(self, part: int) -> Rows:
        return self.rows[part] if self.rows is not None else Rows.of_one(len((self.train, self.held_out)[part]))

    def batch(self, step: int) -> Batch:
        """Make the global batch of training step `step`."""
        first, rows = step * self.batch_size, self._rows(0)
        places = [divmod(place, len(rows)) for place in range(first, first + self.batch_size)]
        orders = {epoch: draws(self.seed, epoch).permutation(len(rows)) for epoch in {epoch for epoch, _ in places}}
        return self.packer.pack([[*map(self.train.document, rows[orders[epoch][place]])] for epoch, place in places])

    def distinct_batches(self, step: int, count: int) -> Iterator[Batch]:
        """Pack the rows that come next in the epoch, from its end on those that it began with."""
        size, rows = self.batch_size, self._rows(0)
        epoch, place = divmod(step * size, len(rows))
        order = np.roll(draws(self.seed, epoch).permutation(len(rows)), -place)[: count * size]
        return self.packer.batches(([*map(self.train.document, rows[number])] for number in order), size)

    def held_out_batches(self, tokens: int | None = None) -> Iterator[Batch]:
        """Pack the held-out rows as they are stored, until there are so many targets."""
        rows = self._rows(1)
        targets = np.add.reduceat(self.held_out.target_counts[rows.order], rows.starts[:-1])
        wanted = len(rows) if tokens is None else int(np.searchsorted(np.cumsum(targets), tokens)) + 1
        some = ([*map(self.held_out.document, rows[number])] for number in range(min(wanted, len(rows))))
        return self.packer.batches(some, self.batch_size)


@dataclass(frozen=True)
class Pieces:
    """Whole documents, and pieces of long ones, one behind the other: piece i is ids[starts[i]:starts[i + 1]]."""

    ids: SavedIds
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def document(self, number: int) -> Document:
        """Give a piece, which asks for nothing behind its end."""
        tokens = self.ids[self.starts[number] : self.starts[number + 1]]
        targets = np.append(tokens[1:], IGNORED).astype(np.int64)
        return Document(tokens, np.zeros(tokens.size, dtype=bool), targets)

    @property
    def target_counts(self) -> NDArray[np.int64]:
        return np.diff(self.starts) - 1


class PackedTexts(EpochData):
    """Rows of pieces of texts."""

    def sample(self, length: int, share: float = 0.0) -> Sample:
        rows = self._rows(1)
        document = self.held_out.document(int(rows[int(share * len(rows))][0]))
        ids = document.tokens[:length]
        return Sample(Document(ids, document.context[:length], ids))

    def decode(self, ids: Iterable[int]) -> str:
        return self.tokenizer.decode(ids)


class PieceWriter:
    """Writes documents as they come, cut into pieces of at most `room` tokens."""

    def __init__(self, into: GrowingIds, room: int) -> None:
        self._into, self._room = into, room
        self._lengths = array("q")

    def add(self, ids: NDArray[np.int32]) -> None:
        self._into.add(ids)
        whole, rest = divmod(ids.size, self._room)
        self._lengths.extend([self._room] * whole + [rest] * (rest > 0))

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.array(self._lengths, dtype=np.int64)


def save_rows(directory: Path, part: str, rows: Rows, lengths: NDArray[np.int64] | None = None) -> None:
    """Write which documents stand in which row, and of texts how long each piece is."""
    arrays: dict[str, Any] = {"order": rows.order, "starts": rows.starts}
    arrays |= {} if lengths is None else {"lengths": lengths}
    with naming(path := directory / f"{part}_rows.npz", sum(array.nbytes for array in arrays.values())):
        np.savez(path, **arrays)


def has_rows(directory: Path) -> bool:
    return (directory / f"{PARTS[0]}_rows.npz").exists()


def load_rows(directory: Path) -> tuple[Rows, Rows] | None:
    """Open what `save_rows` wrote of both parts; None where it wrote nothing."""
    if not has_rows(directory):
        return None
    train, held_out = (_arrays(directory, part) for part in PARTS)
    return Rows(train["order"], train["starts"]), Rows(held_out["order"], held_out["starts"])


def _arrays(directory: Path, part: str) -> dict[str, NDArray[np.int64]]:
    with naming(path := directory / f"{part}_rows.npz"), np.load(path) as arrays:
        return dict(arrays)


def load_packed_texts(directory: Path, packer: Packer, *, batch_size: int, seed: int) -> PackedTexts:
    """Open the rows of texts; their ids are read when they are asked for."""
    parts = []
    for part in PARTS:
        starts = np.concatenate([[0], np.cumsum(_arrays(directory, part)["lengths"])])
        parts.append(Pieces(SavedIds(directory / f"{part}.npy"), starts))
    tokenizer = read_tokenizer(directory)
    return PackedTexts(parts[0], parts[1], tokenizer, packer, batch_size, seed, load_rows(directory))


def check_rows(rows: Rows, part: str, file: Path) -> None:
    """Raises InputError: a part has no row; `file` is the one that it came from."""
    if not len(rows):
        raise InputError.at(file, f"the {part} part has no document of {LEAST} tokens", "give more text")
