"""A note beside a mask file, `heads.pt.json`: which run made the mask, and which weights learned with it.

A mask belongs to the weights that were trained with it. The note lets a later run see that it takes the mask together
with the checkpoint from before that training. It changes no result. Needs no torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from sprunec.durable import file_sha256, naming, put_file
from sprunec.errors import InputError
from sprunec.text_files import decode


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
    before = _read(mask) or {}
    if all(before.get(key) == note[key] for key in ("mask", "checkpoint", "steps")):
        note |= {key: before.get(key) for key in ("weights", "weights_file")}
    _put(mask, note)


def note_weights(mask: Path, weights: Path) -> None:
    """Note the checkpoint that holds, in the plan's input shape, the weights that were trained with the mask.

    Raises:
        OSError: `weights` cannot be read or the note cannot be written.
    """
    if (note := _read(mask)) is not None:
        place = os.path.relpath(weights.resolve(), mask.resolve().parent)
        _put(mask, note | {"weights": file_sha256(weights), "weights_file": place})


def read_provenance(mask: Path) -> dict[str, Any] | None:
    """Read the note of a mask file; None if there is none that can be read, or it is about another content."""
    try:
        return _read(mask)
    except OSError:
        return None


def _read(mask: Path) -> dict[str, Any] | None:
    """Do as `read_provenance`; raises OSError for a note that is there and cannot be read."""
    try:
        with naming(note_path(mask)):
            content = note_path(mask).read_bytes()
        note = json.loads(decode(content, mask))
        fits = isinstance(note, dict) and note.get("mask") == file_sha256(mask)
    except (FileNotFoundError, ValueError, RecursionError, InputError):
        return None
    return note if fits else None


def weights_warning(mask: Path, checkpoint: str | None) -> str | None:
    """Warn a run that loads `mask` and starts from the checkpoint with this sha256, if there is a reason.

    The mask was learned with weights that have been trained since that checkpoint: cut from the checkpoint, the model
    has neither the training nor weights that know of the mask.
    """
    if (note := read_provenance(mask)) is None or checkpoint is None or note.get("checkpoint") != checkpoint:
        return None
    if note.get("steps") == note.get("start_step"):
        return None
    file, holder = note.get("weights_file"), "the folder of the run that wrote the mask"
    if isinstance(file, str):
        holder = os.path.normpath(mask.parent / file)
    reason = f"masks learned together with other weights: {holder} holds them"
    return f"{mask.name}: {reason}; this run starts from the weights from before"


def steps_warning(mask: Path, checkpoint: str | None, start_step: int) -> str | None:
    """Warn a run that trains on from weights that have had more steps than it counts from."""
    note = read_provenance(mask)
    steps = note.get("steps") if note is not None and note.get("checkpoint") != checkpoint else None
    if not isinstance(steps, int) or steps <= start_step:
        return None
    again = "the order of data and a noam schedule begin again"
    return f"{mask.name} was made at training step {steps}, and this run counts from {start_step}: {again}"


def made_by_same(mask: Path, unit: str, target: list[str], checkpoint: Path) -> bool:
    """Tell whether a mask file is what a run of this kind, from this checkpoint, has chosen itself."""
    note = read_provenance(mask)
    if note is None or note.get("unit") != unit or note.get("target") != target or not checkpoint.is_file():
        return False
    return bool(note.get("checkpoint") == file_sha256(checkpoint))


def _put(mask: Path, note: Mapping[str, Any]) -> None:
    put_file(note_path(mask), (json.dumps(note, indent=1) + "\n").encode())
