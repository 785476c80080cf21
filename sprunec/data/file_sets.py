"""Which files a path means: itself, those of a directory, or those that a pattern fits; needs no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from glob import glob, has_magic
from pathlib import Path

ENDINGS = {  # of the files that are meant by their directory
    "text": (".txt", ".text"),
    "jsonl": (".jsonl", ".jsonl.gz", ".ndjson"),
    "parquet": (".parquet",),
    "pairs": (".jsonl", ".jsonl.gz", ".ndjson"),
}


def expanded(path: Path, source: str) -> tuple[Path, ...]:
    """List the files that a path means: those of a directory or a pattern, in the order of their names; else its own.

    Args:
        path: what is there by this name is no pattern.
    """
    if source not in ENDINGS or os.path.isfile(path):
        return (path,)
    if os.path.isdir(path):
        found: Iterable[Path] = (each for each in path.rglob("*") if each.name.endswith(ENDINGS[source]))
    elif has_magic(str(path)):
        found = map(Path, glob(str(path), recursive=True))
    else:
        return (path,)
    return tuple(sorted(each for each in found if each.is_file())) or (path,)


def without_files(source: str) -> str:
    """Say what is wrong with a directory that means no file."""
    *some, last = ENDINGS[source]
    return f"is a folder without files in {', '.join(some)}{' or ' if some else ''}{last}"
