"""The files that passes write: each its own, none of which the plan reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sprunec.checkpoint.layouts import checkpoint_files
from sprunec.errors import Diagnostic
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.plan.files import named_files
from sprunec.plan.pointer import show
from sprunec.plan.resolve import Draft, Step
from sprunec.plan.targets import SUBLAYERS

NOTE = ".json"


def saved_masks_fit(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """A mask file is written once, has a form that can say what its pass cuts, and is no file that the plan reads."""
    read = _files_read(draft)
    written: dict[str, str] = {}
    for step in draft.steps:
        pointer = f"{step.pointer}/save_mask"
        if step.options is None or "save_mask" not in step.options:
            yield from _form_unused(draft, step)
            continue
        path: Path = step.options["save_mask"]
        place, note = _real(path), _real(path) + NOTE
        if place in read or note in read:
            message = f"{path} is read by the plan, as its {read.get(place, read.get(note, ''))}"
            yield draft.source.find("overwritten-input", pointer, message, "name another file")
        elif {place, note} & written.keys():
            message = f"{path} is written by {written.get(place, written.get(note, ''))} already"
            yield draft.source.find("written-twice", pointer, message, "name another file: each pass writes its own")
        elif os.path.isdir(path):
            yield draft.source.find("not-a-file", pointer, f"{path} is a folder", "name a file in it")
        written |= dict.fromkeys((place, note), step.pointer)
        yield from _form_says_too_little(draft, step)


def _files_read(draft: Draft) -> dict[str, str]:
    """What the plan reads, by real path: itself, its model config, and the files it names."""
    read = {_real(Path(origin.file)): "own file" for origin, _ in draft.source.origins.values()}
    read[_real(Path(draft.source.file))] = "own file"
    config = draft.section("model").get("config")
    if isinstance(config, str):
        read[_real(draft.folder / config)] = "model config"
    for _, path, what in named_files(draft):
        read |= {_real(file): what for file in (path, *(checkpoint_files(path) if what == "checkpoint" else ()))}
    return read


def _real(path: Path) -> str:
    return os.path.realpath(path)


def _form_unused(draft: Draft, step: Step) -> Iterator[Diagnostic]:
    if "mask_form" in step.given and step.options is not None:
        message, pointer = "mask_form is not used without save_mask", f"{step.pointer}/mask_form"
        yield draft.source.warn("unused-option", pointer, message, "add save_mask, or remove it", key=True)


def _form_says_too_little(draft: Draft, step: Step) -> Iterator[Diagnostic]:
    """`mask_modules` knows sublayers only."""
    options = step.options or {}
    inside = [unit for unit in options.get("unit", ()) if unit not in SUBLAYERS]
    if options.get("mask_form") == "mask_modules" and inside:
        message = (
            f'"mask_modules" says which sublayers are removed, and the pass cuts {" and ".join(map(show, inside))}'
        )
        yield draft.source.find("form-mismatch", f"{step.pointer}/mask_form", message, 'choose "bmcook" or "plugin"')
