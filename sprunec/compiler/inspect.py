"""What is in a model and what can be cut from it, without reading its weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from sprunec.checkpoint.provenance import describe_origin
from sprunec.compiler.opened import open_model
from sprunec.compiler.shape import sizes
from sprunec.families.base_config import ModelConfig
from sprunec.models.meta_models import traced_shape
from sprunec.rewrite.trace import TracedBlock


def inspect_model(path: Path) -> dict[str, Any]:
    """Describe a config, a checkpoint or a directory by the document of `schemas/inspect.schema.json`.

    Raises:
        InputError: see `open_model`.
        TraceError: the model cannot be traced.
    """
    opened = open_model(path)
    origin = describe_origin(opened.path) if opened.path.is_dir() else None
    return describe(opened.config) | ({"origin": origin} if origin is not None else {})


def describe(config: ModelConfig) -> dict[str, Any]:
    """Describe the model's shape, and the sites that a trace of it on the meta device finds."""
    blocks = traced_shape(config)
    found = sizes(config) | {"sites": [site for block in blocks for site in _sites(block)]}
    places: dict[str, list[int]] = {}
    for block in blocks:
        for note in block.notes:
            places.setdefault(note.removeprefix(block.path).lstrip(": "), []).append(block.index)
    notes = [{"text": text, "layers": layers} for text, layers in places.items()]
    return found | ({"notes": notes} if notes else {})


def _sites(block: TracedBlock) -> Iterator[dict[str, Any]]:
    """List the units inside sublayers, then the sublayers themselves."""
    weighs = {name: tensor.numel() for name, tensor in block.module.named_parameters()}
    units: list[tuple[str, int, int, Iterable[tuple[str, int | None]]]] = []
    units += [
        (site.unit, site.size, site.parameters_each, dict.fromkeys(site.tensors)) for site in block.sites.values()
    ]
    for residual in block.forward.residuals:
        parameters = sum(weighs.get(name, 0) for name in residual.tensors)
        units.append((residual.kind, 1, parameters, [(name, None) for name in residual.tensors]))
    for unit, size, parameters, places in units:
        tensors = [{"name": f"{block.path}.{name}", "dim": dim} for name, dim in places]
        yield {
            "layer": block.index,
            "block": block.path,
            "unit": unit,
            "size": size,
            "parameters_each": parameters,
            "tensors": tensors,
            "label": _label([str(each["name"]) for each in tensors]),
        }


def _label(names: Iterable[str]) -> str:
    """Name the module that holds all the tensors."""
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return ".".join(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))
