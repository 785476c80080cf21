"""Where a run reads and writes, looked at before it begins: what would end it after hours is refused now."""

from __future__ import annotations

import os
from pathlib import Path

from sprunec.checkpoint.provenance import note_path
from sprunec.errors import InputError
from sprunec.execution.publish import PUBLISHED
from sprunec.graph.graph import Graph

OWN = ("store", "report.json", "report.html", "report.md", "events.jsonl", "tensorboard", "error.txt")
LONGEST_NAME = 200  # what most disks take, 255 bytes, less what is added while a file and its note are written
OTHER_FOLDER = "choose another folder with --out"
OTHER_FILE = "name another file"


def check_places(graph: Graph, out: Path) -> None:
    """Raise InputError for a file that cannot be written, or that somebody needs and the run would replace."""
    checkpoint = graph.checkpoint_name or ""
    published = [name for name in PUBLISHED if os.path.lexists(out / name)]
    if published and not any((out / name).exists() for name in OWN):
        message = "would be replaced, and no run has worked in this folder"
        raise InputError.at(out / published[0], message, OTHER_FOLDER, code="overwritten-output")
    if checkpoint and (out / checkpoint).is_dir() and not (out / checkpoint).is_symlink():
        raise InputError.at(out / checkpoint, "is a folder, and the run puts a file there", OTHER_FOLDER)
    taken = {*PUBLISHED, checkpoint}
    for path in (path for node in graph.nodes for paths in node.files.values() for path in paths):
        if (name := _name_in(out, path.resolve())) and name in taken:
            message = f"is what this run would replace: it lies where {out} gets its results"
            hint = f"{OTHER_FOLDER}, or copy the file"
            if path.resolve() == out.resolve() / checkpoint:
                hint = "give --start-step where the last stage ended, another --save-name, or another folder"
            raise InputError.at(path, message, hint, code="overwritten-input")
    for node in graph.nodes:
        for path in node.writes.values():
            if _name_in(out, _place(path)) in {"", *taken, *OWN}:
                message = f"is where the run in {out} puts files of its own"
                raise InputError.at(path, message, OTHER_FILE, code="overwritten-output")
            for file in (path, note_path(path)) if node.provenance else (path,):
                _check_writable(file)


def _name_in(out: Path, place: Path) -> str | None:
    """Name what in OUT a place is, or is inside of; "" for OUT itself, None where it is elsewhere."""
    folder = out.resolve()
    return (*place.relative_to(folder).parts, "")[0] if place.is_relative_to(folder) else None


def _check_writable(path: Path) -> None:
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "no plain file, and would be replaced by one"
        raise InputError.at(path, f"is {kind}", OTHER_FILE, code="not-a-file")
    above = next(parent for parent in _place(path).parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        message = f"cannot be written: {above} is no folder that may be written to"
        raise InputError.at(path, message, OTHER_FILE, code="not-writable")
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise InputError.at(path, f"has a name of more than {LONGEST_NAME} bytes", OTHER_FILE, code="not-writable")


def _place(path: Path) -> Path:
    """Resolve all but the name: a link is replaced where it stands, and what it leads to is left alone."""
    return path.parent.resolve() / path.name
