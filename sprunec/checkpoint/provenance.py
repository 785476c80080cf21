"""origin.json beside an emitted model: the plan, versions, digests and measures of the run that made it.

It also has the sha256 of the files around it, so that whoever opens the model can tell whether they are what was
emitted. Needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sprunec.durable import file_sha256, write_new
from sprunec.errors import InputError
from sprunec.text_files import decode

ORIGIN = "origin.json"
LARGEST = 64 * 1024 * 1024


def write_origin(directory: Path, about: Mapping[str, Any]) -> None:
    """Note `about`, and the files that `directory` has now; numbers must be finite."""
    files = {path.relative_to(directory).as_posix(): file_sha256(path) for path in _files(directory)}
    write_new(directory / ORIGIN, json.dumps({**about, "files": files}, indent=1, allow_nan=False) + "\n")


def read_origin(directory: Path) -> dict[str, Any] | None:
    """Read what was noted; None where there is no such note, or none that this could have written."""
    path = directory / ORIGIN
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            return None
        note = json.loads(decode(path.read_bytes(), path))
    except (OSError, ValueError, RecursionError, InputError):
        return None
    files = note.get("files") if isinstance(note, dict) else None
    return note if isinstance(files, dict) else None


def changed_files(directory: Path) -> list[str]:
    """List the files that are no longer what was emitted, or are gone; none where nothing was noted."""
    files = (read_origin(directory) or {}).get("files", {})
    here = {path.relative_to(directory).as_posix(): path for path in _files(directory)}
    return [name for name, digest in files.items() if name not in here or file_sha256(here[name]) != digest]


def check_files(directory: Path) -> None:
    """Raises InputError if a file is not what was emitted."""
    if changed := changed_files(directory):
        message = f"is not what was emitted: its sha256 is not the one in {ORIGIN}"
        raise InputError.at(directory / changed[0], message, f"copy it again; if you changed it, remove {ORIGIN}")


def describe_origin(directory: Path) -> dict[str, Any] | None:
    """Say what `inspect` tells of it, in plain values; None where there is no note."""
    if (note := read_origin(directory)) is None:
        return None
    changed = changed_files(directory)
    return {
        "plan": _at(note, "plan", "name"),
        "made": note.get("made"),
        "sprunec": _at(note, "versions", "sprunec"),
        "checkpoint": _at(note, "plan", "model", "checkpoint"),
        "max_abs_difference": _at(note, "comparison", "max_abs_difference"),
        "dense_loss": _at(note, "models", "dense", "loss"),
        "small_loss": _at(note, "models", "small", "loss"),
        "files": f"changed: {', '.join(changed)}" if changed else "as emitted",
        "note": note,
    }


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _files(directory: Path) -> list[Path]:
    found = (path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != ORIGIN)
    return [path for path in found if "__pycache__" not in path.parts]
