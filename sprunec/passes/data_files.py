"""The files that a plan's data is read from, by role, and their content; needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from sprunec.data.fast_tokenizer import template_files, tokenizer_files
from sprunec.data.text_amounts import documentation, tokens_about
from sprunec.file_digests import MISSING, file_digest
from sprunec.plan.plan import DataSource


def held_out_tokens(data: DataSource, files: Mapping[str, tuple[Path, ...]]) -> int:
    """Guess the tokens that are held out, by the sizes of files that are there."""
    paths = files.get("held_out", ()) or files.get("paths", ()) or (documentation(),)
    tokens = tokens_about(paths, by_character=data.tokenizer == "characters")
    return round(tokens * (data.held_out if isinstance(data.held_out, float) else 1.0))


def has_documents(data: DataSource) -> bool:
    """Tell whether a text may have several documents."""
    return data.source in ("jsonl", "parquet", "datasets") or (data.source == "text" and len(data.paths) > 1)


def data_files(data: DataSource) -> dict[str, tuple[Path, ...]]:
    """List the user's files by role; a set's are its meta.bin and what that names."""
    named = {"paths": data.paths, "held_out": (data.held_out,), "tokenizer": (data.tokenizer,), "vocab": (data.vocab,)}
    found = {role: tuple(p for p in paths if isinstance(p, Path)) for role, paths in named.items()}
    if found["tokenizer"] or found["vocab"]:
        for role in ("tokenizer", "vocab"):
            found[role] = tuple(chain.from_iterable(map(tokenizer_files, found[role])))
    if data.template == "chat":
        found["chat_template"] = tuple(chain.from_iterable(map(template_files, found["tokenizer"][:1])))
    if data.source == "datasets":
        from sprunec.data.datasets_files import find_dataset

        paths, wanted = found["paths"][0], (data.name, data.subset)
        found["paths"] = find_dataset(paths, *wanted, data.split)
        if isinstance(data.held_out, str):
            found["held_out"] = find_dataset(paths, *wanted, data.held_out)
    if data.source == "cpm-live":
        from sprunec.bmcook.data.sets import set_files

        for role in ("paths", "held_out"):
            found[role] = tuple(chain.from_iterable(set_files(path, data.block_size) for path in found[role]))
    return {role: paths for role, paths in found.items() if paths}


def digests(paths: tuple[Path, ...]) -> Any:
    """Identify a text by its files' content."""
    digests = tuple(file_digest(path) for path in paths)
    return MISSING if MISSING in digests else digests


def tokenizer_digest(paths: tuple[Path, ...]) -> Any:
    """Identify a tokenizer by its file, and by its settings where they stand in another."""
    return file_digest(paths[0]) if len(paths) == 1 else digests(paths)
