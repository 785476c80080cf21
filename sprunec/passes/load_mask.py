"""Masks from files, in the indices of the plan's input model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.checkpoint.provenance import steps_warning, weights_warning
from sprunec.durable import write_new
from sprunec.errors import InputError
from sprunec.families.cards import card_of
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Node
from sprunec.graph.options import Options
from sprunec.passes import cut
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass, PassSpec
from sprunec.plan.export_formats import FORMATS, formats_of
from sprunec.units import INSIDE, Kept

if TYPE_CHECKING:
    from sprunec.mask_files.forms import Rules


@dataclass(frozen=True, kw_only=True)
class FileOptions(Options):
    """The files' content; `even`: what they leave must be the same in all layers; and what the files do not say."""

    content: tuple[str, ...]
    even: bool = False
    threshold: float | None = None
    lists: str | None = None
    lists_of: str | None = None


def lower(build: Builder, spec: PassSpec) -> None:
    paths: tuple[Any, ...] = spec.options["path"]
    even = any(form.alike(build.plan.model.config) for form in formats_of(build.plan.passes))
    options = build.options(FileOptions, spec, content=tuple(map(build.masks_digest, paths)), even=even)
    warnings = [weights_warning(path, build.checkpoint) for path in paths]
    if any("steps" in each.options for each in build.plan.passes):
        warnings += [steps_warning(path, build.checkpoint, build.plan.model.start_step) for path in paths]
    inputs, about = {"model": build.model, "source": build.roles.source}, ", ".join(path.name for path in paths)
    notes = tuple(filter(None, warnings))
    files = {"paths": paths} | {"inside": inside} if (inside := _inside(paths)) else {"paths": paths}
    cut.add(build, spec, build.add("load-mask", options, inputs, files=files, about=about, notes=notes))


def _inside(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """List the files in folders of masks."""
    return tuple(file for path in paths if path.is_dir() for file in sorted(path.iterdir()) if file.is_file())


def run(job: Job[FileOptions]) -> dict[str, Any]:
    from sprunec.mask_files.reading import read_masks

    paths = job.files["paths"]
    found = read_masks(paths, job.kept("source"), job.kept(), _rules(job.options))
    _check_fixed(job, found.kept)
    if not any(found.kept):
        raise InputError.at(paths[0], "leaves nothing of the model", "keep at least one sublayer")
    # The plan ends in a format with one width for all layers: better told now than after the training that follows.
    left = job.config().cut(job.kept(), found.kept)
    for form in (form for form in FORMATS.values() if job.options.even and form.alike(left)):
        for code, why, _ in form.obstacles(left):
            if code == "uneven-layers":
                message = f"the format {form.name} can't hold what this mask leaves: {why}"
                raise InputError.at(paths[0], message, "give an even mask, or emit another format")
    write_new(job.out / "kept.json", json.dumps(found.kept.to_json()))
    metrics: dict[str, Any] = {"files": [path.name for path in paths]}
    return metrics | ({"notes": list(found.notes)} if found.notes else {})


def check(node: Node) -> None:
    from sprunec.mask_files.reading import read_mask_file

    for path in node.files["paths"]:
        read_mask_file(path, _rules(node.options))


def _rules(options: FileOptions) -> Rules:
    from sprunec.mask_files.forms import Rules

    return Rules(options.threshold, options.lists, options.lists_of)


def _check_fixed(job: Job[FileOptions], kept: Kept) -> None:
    """Refuse a mask of units that cannot be cut in this model, though their sublayer stays."""
    config = job.config("source")
    for unit, why in card_of(config).fixed_units(config).items():
        for number, layer in enumerate(job.kept()):
            if unit in INSIDE and kept.has(number, unit) and kept.units(number, unit) != layer.get(unit, ()):
                message = f"{unit} cannot be cut in this model: {why}"
                raise InputError.at(job.files["paths"][0], message, "give masks of other units", "cannot-cut")


LOAD_MASK = Pass("load-mask", 2, FileOptions, ("model", "source"), "masks", lower=lower, check=check, removes="units")
