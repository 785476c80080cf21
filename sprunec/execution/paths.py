"""Where a run reads and writes, looked at before it begins: what would end it after hours is refused now."""

from __future__ import annotations

import os
from pathlib import Path

from sprunec.checkpoint.provenance import note_path
from sprunec.errors import InputError
from sprunec.execution.publish import PUBLISHED
from sprunec.graph.graph import Graph

OWN = ("store", "report.json", "report.html", "events.jsonl", "error.txt")
LONGEST_NAME = 200  # what most disks take, 255 bytes, less what is added while a file and its note are written


def check_places(graph: Graph, out: Path) -> None:
    """Raise InputError for a file that cannot be written, or that somebody needs and the run would replace."""
    _check_out(graph, out)
    for path in (path for node in graph.nodes for paths in node.files.values() for path in paths):
        _check_read(path, graph, out)
    for node in graph.nodes:
        for path in node.writes.values():
            _check_own(path, graph, out)
            for file in (path, note_path(path)) if node.provenance else (path,):
                _check_writable(file)


def _check_out(graph: Graph, out: Path) -> None:
    """Refuse a folder with a `model` in it that is not a run's, or without a place for what the run publishes."""
    published = [name for name in PUBLISHED if os.path.lexists(out / name)]
    if published and not any((out / name).exists() for name in OWN):
        message = "would be replaced, and no run has worked in this folder"
        raise InputError.at(out / published[0], message, "choose another folder with --out", code="overwritten-output")
    checkpoint = None if graph.checkpoint_name is None else out / graph.checkpoint_name
    if checkpoint is not None and checkpoint.is_dir() and not checkpoint.is_symlink():
        message = "is a folder, and the run puts a file there"
        raise InputError.at(checkpoint, message, "choose another folder with --out")


def _check_read(path: Path, graph: Graph, out: Path) -> None:
    """Refuse to start from what the run takes away: what an earlier one has published in its folder."""
    folder, place = out.resolve(), path.resolve()
    replaced = {*PUBLISHED, graph.checkpoint_name}
    if place.is_relative_to(folder) and place != folder and place.relative_to(folder).parts[0] in replaced:
        message = f"is what this run would replace: it lies where {out} gets its results"
        hint = "choose another folder with --out, or copy the file"
        if folder / (graph.checkpoint_name or "") == place:
            hint = "give --start-step where the last stage ended, another --save-name, or another folder"
        raise InputError.at(path, message, hint, code="overwritten-input")


def _check_own(path: Path, graph: Graph, out: Path) -> None:
    """Refuse to write what the run keeps for itself, or takes away when it publishes."""
    place, folder = _place(path), out.resolve()
    own = {*PUBLISHED, *OWN, graph.checkpoint_name}
    if place == folder or (place.is_relative_to(folder) and place.relative_to(folder).parts[0] in own):
        message = f"is where the run in {out} puts files of its own"
        raise InputError.at(path, message, "name another file in save_mask", code="overwritten-output")


def _check_writable(path: Path) -> None:
    hint = "name another file in save_mask"
    if path.exists() and not path.is_file():
        kind = "a folder" if path.is_dir() else "no plain file, and would be replaced by one"
        raise InputError.at(path, f"is {kind}", hint, code="not-a-file")
    above = next(parent for parent in _place(path).parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        message = f"cannot be written: {above} is no folder that may be written to"
        raise InputError.at(path, message, hint, code="not-writable")
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise InputError.at(path, f"has a name of more than {LONGEST_NAME} bytes", hint, code="not-writable")


def _place(path: Path) -> Path:
    """Resolve all but the name: a link is replaced where it stands, and what it leads to is left alone."""
    return path.parent.resolve() / path.name
