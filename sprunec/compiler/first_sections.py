"""What a first plan says besides its passes: which model, which text, and its name; needs no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sprunec.checkpoint.gguf_file import is_gguf
from sprunec.checkpoint.hub import TOKENIZER, is_hub_name
from sprunec.checkpoint.layouts import CONFIG, WEIGHTS
from sprunec.compiler.opened import Opened
from sprunec.compiler.plan_file import path_from
from sprunec.data.fast_tokenizer import gguf_lacks
from sprunec.data.file_sets import ENDINGS, expanded
from sprunec.data.text_amounts import training_tokens_about
from sprunec.errors import InputError
from sprunec.families.cards import card_of
from sprunec.plan.schema import properties

POSITIONS, SEQUENCES = 512, 4  # of a row, and rows of a batch
SET = "meta.bin"  # of a binary set, in its directory


def plan_name(path: Path, size: str) -> str:
    """Name a plan by its model and the size that is asked for."""
    place = path.resolve()
    stem = place.parent.name if place.name == CONFIG else place.stem if os.path.isfile(place) else place.name
    return re.sub(r"[^a-z0-9._-]+", "-", f"{stem}-{size}".lower()).lstrip(".")[:100]


def short(count: float) -> str:
    """Write a number of parameters as plans do, e.g. 110M, where that loses nothing."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size and float(f"{count / size:.9g}") * size == count:
            return f"{count / size:.9g}{letter}"
    return str(round(count))


def model_section(model: Path, opened: Opened, folder: Path) -> dict[str, Any]:
    """Name the model as plans do; weights that are not there yet are a file beside the config.

    Args:
        model: as the user has named it.
        folder: where the plan will be.

    Raises:
        InputError: there is no config, and its sizes alone could be guessed.
    """
    path, own_code = opened.path, card_of(opened.config).own_code
    if not os.path.exists(model) and is_hub_name(str(model)):
        return {"path": str(model)}
    if is_gguf(path):
        return {"path": path_from(folder, path)}
    config = path / CONFIG if os.path.isdir(path) or opened.weights else path
    if opened.weights and not os.path.exists(config):
        hint = "put its config.json beside it, and name the directory"
        raise InputError.at(path, "these weights come without a config", hint, code="missing-file")
    if opened.weights:
        return {"path": path_from(folder, path)}
    named = {"config": path_from(folder, config)}
    return named if own_code else named | {"checkpoint": path_from(folder, config.parent / WEIGHTS)}


def data_section(opened: Opened, data: Sequence[Path], folder: Path) -> tuple[dict[str, Any], int | None]:
    """Write the section, and guess how many tokens there are to train on; None: nobody knows.

    Args:
        folder: where the plan will be.
    """
    source = _source(data[0]) if data else "python-docs"
    found: dict[str, Any] = {"source": source}
    if data:
        paths = [path_from(folder, path) for path in data]
        found["path"] = paths if len(paths) > 1 else paths[0]
    found |= {"max_length": _positions(opened, source), "batch_size": SEQUENCES}
    tokenizer = (opened.path if os.path.isdir(opened.path) else opened.path.parent) / TOKENIZER
    there = not gguf_lacks(opened.path) if is_gguf(opened.path) else os.path.isfile(tokenizer)
    by_character = not there or card_of(opened.config).own_code
    if not by_character and not opened.weights:  # where there are weights it is found beside them
        found["tokenizer"] = path_from(folder, tokenizer)
    files = [each for path in data for each in expanded(path, source)]
    share = properties(properties("plan")["data"])["held_out"]["default"]
    return found, training_tokens_about(source, files, share, by_character=by_character)


def _source(path: Path) -> str:
    """Tell by its name how a file is read, a directory by what is in it."""
    if os.path.isfile(path / SET):
        return "cpm-live"
    names = [path.name, *(each.name for each in path.rglob("*"))] if os.path.isdir(path) else [path.name]
    ways = ("jsonl", "parquet")
    return next((way for way in ways if any(name.endswith(ENDINGS[way]) for name in names)), "text")


def _positions(opened: Opened, source: str) -> int:
    """Choose as long a row as the model can have, at most the usual one."""
    length, config = POSITIONS, opened.config
    while length > 1 and _too_long(config, {"source": source, "max_length": length}):
        length //= 2
    return length


def _too_long(config: Any, data: dict[str, Any]) -> bool:
    return any(finding.code == "too-long" for finding in card_of(config).data_findings(config, data))
