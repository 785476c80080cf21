"""The files that passes write: each its own, none of which the plan reads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from sprunec.checkpoint.layouts import checkpoint_files
from sprunec.errors import Diagnostic
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.plan.files import named_files
from sprunec.plan.pointer import show
from sprunec.plan.resolve import Draft
from sprunec.units import INSIDE

NOTE = ".json"


def saved_masks_fit(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """A mask file is written once, has a form that can say what its pass cuts, and is no file that the plan reads."""
    read = _files_read(draft)
    written: dict[str, str] = {}
    for step, options in draft.valid():
        form = f"{step.pointer}/mask_form"
        if "save_mask" not in options:
            if "mask_form" in step.given:
                message = "mask_form is not used without save_mask"
                yield draft.source.warn("unused-option", form, message, "add save_mask, or remove it", key=True)
            continue
        yield from _path_fits(draft, f"{step.pointer}/save_mask", options["save_mask"], read, written)
        written |= dict.fromkeys(_names(options["save_mask"]), step.pointer)
        inside = [unit for unit in options.get("unit", ()) if unit in INSIDE]
        if options.get("mask_form") == "mask_modules" and inside:
            cut = " and ".join(map(show, inside))
            message = f'"mask_modules" says which sublayers are removed, and the pass cuts {cut}'
            yield draft.source.find("form-mismatch", form, message, 'choose "bmcook" or "plugin"')


def _path_fits(
    draft: Draft, pointer: str, path: Path, read: Mapping[str, str], written: Mapping[str, str]
) -> Iterator[Diagnostic]:
    names = _names(path)
    reader, writer = (next((users[name] for name in names if name in users), None) for users in (read, written))
    if reader is not None:
        message = f"{path} is read by the plan, as its {reader}"
        yield draft.source.find("overwritten-input", pointer, message, "name another file")
    elif writer is not None:
        message = f"{path} is written by {writer} already"
        yield draft.source.find("written-twice", pointer, message, "name another file: each pass writes its own")
    elif os.path.isdir(path):
        yield draft.source.find("not-a-file", pointer, f"{path} is a folder", "name a file in it")


def _names(path: Path) -> tuple[str, str]:
    """The real paths of a mask file and of the note beside it."""
    return os.path.realpath(path), os.path.realpath(path) + NOTE


def _files_read(draft: Draft) -> dict[str, str]:
    """What the plan reads, by real path: itself, its model config, and the files it names."""
    read = {os.path.realpath(Path(origin.file)): "own file" for origin, _ in draft.source.origins.values()}
    read[os.path.realpath(Path(draft.source.file))] = "own file"
    config = draft.section("model").get("config")
    if isinstance(config, str):
        read[os.path.realpath(draft.folder / config)] = "model config"
    for _, path, what in named_files(draft):
        read |= {
            os.path.realpath(file): what for file in (path, *(checkpoint_files(path) if what == "checkpoint" else ()))
        }
    return read
