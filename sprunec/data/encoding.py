"""Documents into ids on disk while they are read, so that no more than a few of them are in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sprunec.data.fast_tokenizer import FastTokenizer
from sprunec.data.packing import LEAST, PARTS, PieceWriter, Rows, fit, padding, save_rows
from sprunec.data.saved import GrowingIds
from sprunec.data.text import Piece

TOGETHER, CHARACTERS = 256, 2**20  # documents that are encoded together, and of what length


def write_joined(directory: Path, documents: Iterable[Piece], tokenizer: FastTokenizer) -> list[int]:
    """Write the ids of both parts, between documents the token that ends a text, else a newline; count them."""
    between = tokenizer.text_end if tokenizer.text_end.size else tokenizer.encode("\n")
    with ExitStack() as files:
        parts = [files.enter_context(GrowingIds(directory / f"{part}.npy")) for part in PARTS]
        begun = [False, False]
        for piece, ids in encoded(documents, tokenizer):
            if begun[piece.part]:
                parts[piece.part].add(between)
            parts[piece.part].add(ids)
            begun[piece.part] = True
    return [part.size for part in parts]


def write_apart(
    directory: Path, documents: Iterable[Piece], tokenizer: FastTokenizer, room: int, width: int
) -> list[tuple[int, Rows, float]]:
    """Write the ids of both parts, and which documents stand in which row; behind each the token that ends a text.

    Args:
        room: the tokens that fit into a row with one document.
        width: the positions of a row.

    Returns:
        Of each part how many ids it has, its rows, and the share of their positions that is padding.
    """
    with ExitStack() as files:
        parts = [files.enter_context(GrowingIds(directory / f"{part}.npy")) for part in PARTS]
        writers = [PieceWriter(part, room) for part in parts]
        for piece, ids in encoded(documents, tokenizer):
            writers[piece.part].add(np.append(ids, tokenizer.text_end) if piece.ends else ids)
    found = []
    for name, part, writer in zip(PARTS, parts, writers, strict=True):
        rows, share = packed(directory, name, writer.lengths, width - room, width)
        found.append((part.size, rows, share))
    return found


def packed(
    directory: Path, part: str, lengths: NDArray[np.int64], overhead: int, width: int, *, texts: bool = True
) -> tuple[Rows, float]:
    """Fit documents into rows, and write these down -> them, and the share of their positions that is padding.

    Args:
        overhead: the positions that a document takes besides.
        texts: whether nothing else says how long the documents are.
    """
    rows = fit(lengths + overhead, width, LEAST + overhead)
    save_rows(directory, part, rows, lengths if texts else None)
    return rows, padding(lengths + overhead, rows, width) if len(rows) else 0.0


def encoded(documents: Iterable[Piece], tokenizer: FastTokenizer) -> Iterator[tuple[Piece, NDArray[np.int32]]]:
    """Give the ids of each document, of several encoded at a time."""
    for some in _together(documents):
        yield from zip(some, tokenizer.encode_all([piece.text for piece in some]), strict=True)


def _together(documents: Iterable[Piece]) -> Iterator[list[Piece]]:
    some, size = list[Piece](), 0
    for piece in documents:
        if some and (len(some) == TOGETHER or size + len(piece.text) > CHARACTERS):
            yield some
            some, size = [], 0
        some.append(piece)
        size += len(piece.text)
    if some:
        yield some
