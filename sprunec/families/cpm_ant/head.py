"""Whether a checkpoint's head repeats its embedding, by their bytes in the file; needs no torch.

CPM-Ant projects on the table that it looks words up in. Hugging Face's class, and whoever trains the two apart, keeps
the head as a tensor of its own. That decides what a model weighs, so it must be known before anything is planned.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path

from sprunec.checkpoint.headers import known_places
from sprunec.checkpoint.safetensors_file import SIZES, Stored
from sprunec.durable import read_into
from sprunec.errors import InputError
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.huggingface_names import HEAD, OWN_PREFIX, STOCK_PREFIX, WORDS

CHUNK_BYTES = 4 * 2**20


def head_and_words(names: Collection[str]) -> tuple[str, str] | None:
    """The names of a file's head and of its table of words; None where it has no head."""
    pairs = [(HEAD, STOCK_PREFIX + WORDS), (OWN_PREFIX + HEAD, OWN_PREFIX + WORDS), (HEAD, WORDS)]
    return next((pair for pair in pairs if all(name in names for name in pair)), None)


def has_own_head(config: ModelConfig, path: Path) -> bool | None:
    """Whether a checkpoint has a head that differs from its rows of words.

    Both have the same factor in them, whatever the form. None: this cannot read the file; loading it tells why.
    """
    try:
        places = known_places(path)
    except (InputError, OSError):
        return None
    if places is None:
        return None
    names = head_and_words(places)
    return names is not None and not _same_rows(places[names[0]], places[names[1]], config.vocab_size)


def _same_rows(head: Stored, words: Stored, rows: int) -> bool:
    """Whether the first rows of two tables are the same bytes; what cannot be compared so differs."""
    if min(head.shape[:1], words.shape[:1]) < (rows,) or head.shape[1:] != words.shape[1:] or head.dtype != words.dtype:
        return False
    if (head.file, head.start, head.strides) == (words.file, words.start, words.strides):
        return True
    if head.strides is not None or words.strides is not None or head.dtype not in SIZES:
        return False
    size = rows * math.prod(head.shape[1:]) * SIZES[head.dtype]
    room = memoryview(bytearray(2 * CHUNK_BYTES))
    for done in range(0, size, CHUNK_BYTES):
        length = min(CHUNK_BYTES, size - done)
        one, other = room[:length], room[CHUNK_BYTES:][:length]
        read_into(head.file, [(head.start + done, head.start + done + length)], one)
        read_into(words.file, [(words.start + done, words.start + done + length)], other)
        if one != other:
            return False
    return True
