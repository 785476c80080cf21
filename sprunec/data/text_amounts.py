"""About how many tokens a text has, by the sizes of its files; nothing of them is read, and it needs no torch."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

BYTES_A_TOKEN = 4  # of English text, about, in a vocabulary of words and parts of words
PLAIN = ("text", "jsonl")  # sources whose files are about as long as their texts
PACKED = (".gz", ".gzip")


def documentation() -> Path:
    """Say where the interpreter's own documentation is."""
    from pydoc_data import topics

    return Path(topics.__file__)


def tokens_about(paths: Collection[Path], *, by_character: bool) -> int:
    """Guess the tokens of files that are there."""
    size = sum(path.stat().st_size for path in paths if os.path.isfile(path))
    return size // (1 if by_character else BYTES_A_TOKEN)


def training_tokens_about(source: str, paths: Collection[Path], held_out: object, *, by_character: bool) -> int | None:
    """Guess the tokens that are trained on; None where the sizes of files say too little, or one is not there.

    Args:
        held_out: the share at the end that is not trained on, or files of its own.
    """
    share = 1.0 - held_out if isinstance(held_out, float) else 1.0
    if source == "python-docs":
        from pydoc_data.topics import topics

        size = sum(map(len, topics.values())) + len(topics) - 1
        return round(share * size / (1 if by_character else BYTES_A_TOKEN))
    plain = source in PLAIN and all(os.path.isfile(path) and path.suffix not in PACKED for path in paths)
    return round(share * tokens_about(paths, by_character=by_character)) if plain and paths else None
