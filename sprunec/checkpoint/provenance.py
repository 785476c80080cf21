"""Notes beside what a run has written, which say where it comes from, and change no result; needs no torch.

`origin.json`, beside an emitted model: the plan, versions, digests and measures of its run, and the sha256 of the files
around it, so that whoever opens the model can tell whether they are what was emitted.

`heads.pt.json`, beside a mask file: which run made the mask, and which weights learned with it. A mask belongs to the
weights that were trained with it, and a later run sees that it takes it together with the checkpoint from before.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from sprunec.durable import file_sha256, naming, put_file, write_new
from sprunec.errors import InputError
from sprunec.text_files import decode

ORIGIN = "origin.json"
LARGEST = 64 * 1024 * 1024


def write_origin(directory: Path, about: Mapping[str, Any]) -> None:
    """Note `about`, and the files that `directory` has now; numbers must be finite."""
    files = {name: file_sha256(path) for name, path in _files(directory).items()}
    write_new(directory / ORIGIN, json.dumps({**about, "files": files}, indent=1, allow_nan=False) + "\n")


def read_origin(directory: Path) -> dict[str, Any] | None:
    """Read what was noted; None where there is no such note, or none that this could have written."""
    try:
        note = _read(directory / ORIGIN) if (directory / ORIGIN).is_file() else {}
    except OSError:
        return None
    return note if isinstance(note.get("files"), dict) else None


def changed_files(directory: Path) -> list[str]:
    """List the files that are no longer what was emitted, or are gone; none where nothing was noted."""
    files, here = (read_origin(directory) or {}).get("files", {}), _files(directory)
    return [name for name, digest in files.items() if name not in here or file_sha256(here[name]) != digest]


def check_files(directory: Path) -> None:
    """Raises InputError if a file is not what was emitted."""
    if changed := changed_files(directory):
        message = f"is not what was emitted: its sha256 is not the one in {ORIGIN}"
        raise InputError.at(directory / changed[0], message, f"copy it again; if you changed it, remove {ORIGIN}")


def describe_origin(directory: Path, most: float = math.inf) -> dict[str, Any] | None:
    """Say what `inspect` tells of it, in plain values; None where there is no note.

    Args:
        most: files of more bytes together are not read.
    """
    if (note := read_origin(directory)) is None:
        return None
    if sum(path.stat().st_size for path in _files(directory).values()) > most:
        files = "not read"
    else:
        changed = changed_files(directory)
        files = f"changed: {', '.join(changed)}" if changed else "as emitted"
    return {
        "plan": _at(note, "plan", "name"),
        "made": note.get("made"),
        "sprunec": _at(note, "versions", "sprunec"),
        "checkpoint": _at(note, "plan", "model", "checkpoint"),
        "max_abs_difference": _at(note, "comparison", "max_abs_difference"),
        "dense_loss": _at(note, "models", "dense", "loss"),
        "small_loss": _at(note, "models", "small", "loss"),
        "files": files,
        "note": note,
    }


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _files(directory: Path) -> dict[str, Path]:
    found = (path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != ORIGIN)
    return {path.relative_to(directory).as_posix(): path for path in found if "__pycache__" not in path.parts}


def note_path(mask: Path) -> Path:
    return mask.with_name(f"{mask.name}.json")


def write_provenance(mask: Path, about: Mapping[str, Any]) -> None:
    """Note what made a mask file; weights that are noted for this very mask already stay noted.

    Args:
        about: unit; target; checkpoint, the sha256 of the file that the plan entered with, or None; start_step, the
            training steps that this checkpoint has had; steps, those that the model has had when the mask was made.
    """
    try:
        version = metadata.version("sprunec")
    except metadata.PackageNotFoundError:
        version = "not installed"
    note = {"sprunec": version, **about, "weights": None, "weights_file": None, "mask": file_sha256(mask)}
    note = json.loads(json.dumps(note, default=dict))  # frozen options are mapping proxies
    before = _about(mask) or {}
    if all(before.get(key) == note[key] for key in ("mask", "checkpoint", "steps")):
        note |= {key: before.get(key) for key in ("weights", "weights_file")}
    _put(mask, note)


def note_weights(mask: Path, weights: Path) -> None:
    """Note which file holds, in the plan's input shape, the weights that were trained with the mask; raises OSError."""
    if (note := _about(mask)) is not None:
        place = os.path.relpath(weights.resolve(), mask.resolve().parent)
        _put(mask, note | {"weights": file_sha256(weights), "weights_file": place})


def read_provenance(mask: Path) -> dict[str, Any] | None:
    """Read the note of a mask file; None if there is none that can be read, or it is about another content."""
    try:
        return _about(mask)
    except OSError:
        return None


def weights_warning(mask: Path, checkpoint: str | None) -> str | None:
    """Warn a run that loads `mask` and starts from the checkpoint with this sha256, if there is a reason.

    The mask was learned with weights that have been trained since that checkpoint: cut from the checkpoint, the model
    has neither the training nor weights that know of the mask.
    """
    note = read_provenance(mask) or {}
    if checkpoint is None or note.get("checkpoint") != checkpoint or note.get("steps") == note.get("start_step"):
        return None
    file, holder = note.get("weights_file"), "the folder of the run that wrote the mask"
    if isinstance(file, str):
        holder = os.path.normpath(mask.parent / file)
    reason = f"masks learned together with other weights: {holder} holds them"
    return f"{mask.name}: {reason}; this run starts from the weights from before"


def steps_warning(mask: Path, checkpoint: str | None, start_step: int) -> str | None:
    """Warn a run that trains on from weights that have had more steps than it counts from."""
    note = read_provenance(mask) or {"checkpoint": checkpoint}
    steps = note.get("steps")
    if note.get("checkpoint") == checkpoint or not isinstance(steps, int) or steps <= start_step:
        return None
    again = "the order of data and a noam schedule begin again"
    return f"{mask.name} was made at training step {steps}, and this run counts from {start_step}: {again}"


def made_by_same(mask: Path, unit: str, target: list[str], checkpoint: Path) -> bool:
    """Tell whether a mask file is what a run of this kind, from this checkpoint, has chosen itself."""
    note = read_provenance(mask) or {}
    if note.get("unit") != unit or note.get("target") != target or not checkpoint.is_file():
        return False
    return bool(note.get("checkpoint") == file_sha256(checkpoint))


def _about(mask: Path) -> dict[str, Any] | None:
    """Do as `read_provenance`; raises OSError for a note that is there and cannot be read."""
    try:
        note = _read(note_path(mask))
        return note if note and note.get("mask") == file_sha256(mask) else None
    except FileNotFoundError:
        return None


def _put(mask: Path, note: Mapping[str, Any]) -> None:
    put_file(note_path(mask), (json.dumps(note, indent=1) + "\n").encode())


def _read(path: Path) -> dict[str, Any]:
    """Read a note, an empty one where it is none; raises OSError."""
    with naming(path):
        content = path.read_bytes() if path.stat().st_size <= LARGEST else b""
    try:
        note = json.loads(decode(content, path))
    except (ValueError, RecursionError, InputError):
        return {}
    return note if isinstance(note, dict) else {}
