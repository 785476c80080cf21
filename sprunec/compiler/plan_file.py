"""Plans that are made here, as files: written as people write them, and never over another file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sprunec.durable import naming, write_atomically
from sprunec.errors import InputError
from sprunec.plan.schema import schema_folder

WIDTH = 110
NEAR = 2  # folders up, until a path is better said from the top


def plan_text(document: Mapping[str, Any]) -> str:
    """Write a plan with a line for each section and each pass, as far as they fit."""
    return _lines(document, 0) + "\n"


def _lines(value: Any, indent: int) -> str:
    whole = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, Mapping | list) or (indent and indent + len(whole) <= WIDTH):
        return whole
    inner = "\n" + " " * (indent + 2)
    if isinstance(value, list):
        parts, ends = [_lines(each, indent + 2) for each in value], "[]"
    else:
        parts, ends = [f"{json.dumps(key)}: {_lines(each, indent + 2)}" for key, each in value.items()], "{}"
    return f"{ends[0]}{inner}{f',{inner}'.join(parts)}\n{' ' * indent}{ends[1]}"


def write_plan(path: Path, document: Mapping[str, Any]) -> None:
    """Write a plan, unless another file is there.

    Raises:
        InputError: another file is there, or it cannot be written.
    """
    text = plan_text(document)
    if path.is_dir():
        raise InputError.at(path, "this is a folder", "name a file in it")
    try:
        with naming(path):
            other = path.exists() and path.read_text(encoding="utf-8", errors="replace") != text
        if other:
            raise InputError.at(path, "there is a file already", "remove it, or name another")
        write_atomically(path, text)
    except OSError as error:
        raise InputError.of_disk(path, error, "cannot be written", code="unwritable") from error


def path_from(folder: Path, path: Path) -> str:
    """Write a path as a file in `folder` names it: relative, unless that is far up."""
    relative = os.path.relpath(path.resolve(), folder.resolve())
    far = relative.split(os.sep).count("..") > NEAR
    return path.resolve().as_posix() if far else Path(relative).as_posix()


def schema_from(folder: Path) -> str:
    """Name the schema of plans, by which editors complete them."""
    found = path_from(folder, schema_folder() / "plan.schema.json")
    return Path(found).as_uri() if Path(found).is_absolute() else found
