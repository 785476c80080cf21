"""Write the small model in the formats people use; what is written here is compared before it is published."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sprunec.durable import write_new
from sprunec.errors import FormatError
from sprunec.file_digests import file_digest
from sprunec.graph.arithmetic import by_rows
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Node
from sprunec.graph.needs import Needs, Whole
from sprunec.graph.options import Options
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass, PassSpec
from sprunec.plan.export_formats import FORMATS, Emission


@dataclass(frozen=True, kw_only=True)
class EmitOptions(Options):
    """The formats, and what decides what they hold, by names of their own."""

    formats: tuple[str, ...]
    details: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        return {"formats": self.formats, **self.details}


def lower(build: Builder, spec: PassSpec) -> None:
    """Note what to emit: that is done last."""
    build.emitting = spec


def add(build: Builder, spec: PassSpec, model: str) -> str:
    """Add a node that writes a node's model in all formats."""
    formats, files = tuple(spec.options["formats"]), dict[str, tuple[Path, ...]]()
    details = {"dtype": spec.options["dtype"]} if any(FORMATS[name].folds for name in formats) else {}
    details |= {name: dict(spec.options[name]) for name in formats if spec.options.get(name)}
    for name in formats:
        own, given = FORMATS[name].options(build.plan)
        digests = {role: tuple(file_digest(path) for path in paths) for role, paths in given.items() if paths}
        details |= own | {role: each if len(each) > 1 else each[0] for role, each in digests.items()}
        files |= given
    options, inputs = EmitOptions(formats=formats, details=details), {"model": model, "source": build.roles.source}
    return build.add("emit", options, inputs, about=", ".join(formats), files=files)


def needs(build: Builder, node: Node) -> Needs:
    """Write each format that cannot be a second name of the model's own files; a user's are never shared."""
    small, giver = build.sizes[node.name], node.inputs["model"]
    forms, own = [FORMATS[name] for name in node.options.formats], build.nodes[giver].pass_ != "load"
    anew = [small for form in forms if not (own and form.shares(small.config))]
    written = by_rows(build.sizes[giver], anew) if anew else Needs()
    held = max(form.in_memory for form in forms) * small.nbytes
    remedy = f"emit no {' and no '.join(form.name for form in forms if form.in_memory)}"
    whole = Whole(small.certain(held), 0.0, "the model in memory, to export it", remedy) if held else None
    return replace(written, memory={**written.memory, "model": held}, least_disk=0.0, whole=whole)  # some may fail


def run(job: Job[EmitOptions]) -> dict[str, Any]:
    """Write all formats that can hold the model; of the others, a note of why they cannot.

    Raises:
        FormatError: none of them can.
    """
    sizes, about, failed = {}, {}, {}
    config = job.config()
    emission = Emission(job.inputs["model"], job.inputs["source"], config, job.options.details, job.files)
    for name in job.options.formats:
        directory = job.out / name
        try:
            about[name] = FORMATS[name].write(emission, directory)
        except FormatError as error:
            shutil.rmtree(directory, ignore_errors=True)
            failed[name] = error
            write_new(job.out / f"{name}.txt", str(error))
            continue
        sizes[name] = sum(file.stat().st_size for file in directory.iterdir())
    if not about:
        raise next(iter(failed.values()))
    return {"parameters": config.parameters(), "bytes": sizes, "forms": about}


EMIT = Pass("emit", 5, EmitOptions, ("model", "source"), "emitted", lower=lower, needs=needs)
