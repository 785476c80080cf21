"""What is in a model and what can be cut from it, without reading its weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from sprunec.checkpoint.hub import find_snapshot, hub_cache, is_hub_name
from sprunec.checkpoint.layouts import CONFIG, is_index
from sprunec.checkpoint.provenance import describe_origin
from sprunec.checkpoint.reader import Tensors, open_tensors
from sprunec.errors import InputError
from sprunec.families.base_config import ModelConfig, removable, unit_cost
from sprunec.families.cards import card, card_of
from sprunec.families.fit import check_dtypes, check_fit, refuse_unused
from sprunec.families.head import own_head
from sprunec.file_kinds import JSON, file_kind, foreign
from sprunec.models.meta_models import traced_shape
from sprunec.plan.model_config import read_config
from sprunec.rewrite.trace import TracedBlock
from sprunec.units import INSIDE, SUBLAYERS, UNITS, sublayers_of

HINT = "name a config, safetensors, what torch.save wrote, or a directory of these"


def inspect_model(path: Path) -> dict[str, Any]:
    """Describe a config, a checkpoint or a directory by the document of `schemas/inspect.schema.json`.

    A model of the hub is looked for, by its name, in the local cache.

    Raises:
        InputError: nothing of these, or a checkpoint and a config that do not fit each other.
        TraceError: the model cannot be traced.
    """
    if not os.path.exists(path) and is_hub_name(str(path)):
        if (found := find_snapshot(str(path))) is None:
            message = f"there is no such file, and no model of this name in {hub_cache()}"
            raise InputError.at(path, message, "check the path, or fetch the model", code="missing-file")
        path = found
    if os.path.isdir(path):
        if not os.path.exists(path / CONFIG):
            return describe(_guessed(path))
        config = _fitting(_read(path / CONFIG), open_tensors(path), path)
        origin = describe_origin(path)
        return describe(config) | ({"origin": origin} if origin is not None else {})
    if not os.path.exists(path):
        raise InputError.at(path, "there is no such file", "check the path", code="missing-file")
    if not is_index(path):
        fine = {*JSON, "safetensors", "torch", "unknown"}
        told = None if path.suffix == ".json" else foreign(path, "a model config or a checkpoint", fine, {"": HINT})
        if told is not None:
            raise told
        if path.suffix == ".json" or file_kind(path) in JSON:
            return describe(_read(path))
    return describe(_guessed(path))


def _read(path: Path) -> ModelConfig:
    config, found = read_config(str(path))
    if config is None:
        raise InputError(*found)
    return config


def _guessed(path: Path) -> ModelConfig:
    """Guess the config of weights alone, as much as their shapes tell."""
    tensors = open_tensors(path)
    check_dtypes(tensors, path)
    return _fitting(card().guess(tensors.shapes(), path), tensors, path)


def _fitting(config: ModelConfig, tensors: Tensors, path: Path) -> ModelConfig:
    """Untie the head from the embedding where the weights have it so, and check that weights and config fit."""
    if config.tie_word_embeddings and own_head(config, tensors) is not None:
        config = config.with_head(own=True)
    refuse_unused(check_fit(config, tensors, path), path)
    return config


def describe(config: ModelConfig) -> dict[str, Any]:
    """Describe the model's shape, and the sites that a trace of it on the meta device finds."""
    blocks = traced_shape(config)
    found = {
        "family": config.family,
        "parameters": {"total": config.parameters(), "prunable": removable(config, SUBLAYERS)},
        "cache_bytes_per_token": card_of(config).cache_bytes(config),
        "layers": [_layer(config, index) for index in range(len(config.layers))],
        "sites": [site for block in blocks for site in _sites(block)],
    }
    places: dict[str, list[int]] = {}
    for block in blocks:
        for note in block.notes:
            places.setdefault(note.removeprefix(block.path).lstrip(": "), []).append(block.index)
    notes = [{"text": text, "layers": layers} for text, layers in places.items()]
    return found | ({"notes": notes} if notes else {})


def _layer(config: ModelConfig, index: int) -> dict[str, Any]:
    found: dict[str, Any] = {"index": index} | dict.fromkeys(SUBLAYERS)
    counts = config.layers[index].counts
    for kind in sublayers_of(counts):
        sizes = {UNITS[unit].field: count for unit, count in counts.items() if INSIDE[unit] == kind}
        found[kind] = sizes | {"parameters": unit_cost(config, index, kind)}
    return found


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
