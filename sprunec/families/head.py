"""Whether a checkpoint's head repeats its embedding, by their bytes in the file; needs no torch.

A model may project on the table that it looks tokens up in, or keep its head as a tensor of its own. That decides what
it weighs, so it must be known before anything is planned.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sprunec.checkpoint.header import Header, open_header
from sprunec.checkpoint.safetensors_file import SIZES, Stored
from sprunec.durable import read_into
from sprunec.errors import InputError
from sprunec.families.base_config import ModelConfig
from sprunec.families.cards import card_of

CHUNK_BYTES = 4 * 2**20


def has_own_head(config: ModelConfig, path: Path) -> bool | None:
    """Tell whether a checkpoint has a head that differs from its embedding.

    None: this cannot read the file; loading it tells why.
    """
    try:
        header = open_header(path)
        return None if header is None else own_head(config, header) is not None
    except (InputError, OSError):
        return None


def own_head(config: ModelConfig, header: Header) -> str | None:
    """Find a head that does not repeat its embedding; None where both are one table.

    Both have the same factor in them, whatever the form.

    Args:
        header: with the tensors themselves, where only torch could read a file.
    """
    if (names := card_of(config).head_names(header)) is None:
        return None
    head, embedding = (header.places[name] for name in names)
    if isinstance(head, Stored) and isinstance(embedding, Stored):
        alike = _same_rows(head, embedding, config.vocab_size)
    else:
        tensors: Any = header
        head, embedding = (tensors[name] for name in names)
        alike = head.dtype == embedding.dtype and head.dim() == embedding.dim() == 2
        alike = alike and head[: config.vocab_size].equal(embedding[: config.vocab_size])
    return None if alike else names[0]


def _same_rows(head: Stored, embedding: Stored, rows: int) -> bool:
    """Tell whether the first rows of two tables are the same bytes; what cannot be compared so differs."""
    fits = min(head.shape[:1], embedding.shape[:1]) >= (rows,) and head.shape[1:] == embedding.shape[1:]
    if not fits or head.dtype != embedding.dtype:
        return False
    if (head.file, head.start, head.strides) == (embedding.file, embedding.start, embedding.strides):
        return True
    if head.strides is not None or embedding.strides is not None or head.dtype not in SIZES:
        return False
    if (size := head.extent * rows // head.shape[0]) != embedding.extent * rows // embedding.shape[0]:
        return False  # of one type, and packed otherwise
    buffer = memoryview(bytearray(2 * CHUNK_BYTES))
    for done in range(0, size, CHUNK_BYTES):
        length = min(CHUNK_BYTES, size - done)
        one, other = buffer[:length], buffer[CHUNK_BYTES:][:length]
        for table, part in ((head, one), (embedding, other)):
            read_into(table.file, [(table.start + done, table.start + done + length)], part)
        if one != other:
            return False
    return True
