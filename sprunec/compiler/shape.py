"""What a config says of a model: its layers, what of them can be cut, and what each has of the whole; needs no torch.

What can be cut is what the family's card says, and the tests hold that against what a trace finds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sprunec.checkpoint.provenance import describe_origin
from sprunec.compiler.opened import open_model
from sprunec.families.base_config import ModelConfig, removable, unit_cost
from sprunec.families.cards import card_of
from sprunec.units import INSIDE, SUBLAYERS, UNITS, sublayers_of

READ = 2**30  # bytes of an emitted directory that are hashed for a look at it
LONG = 4096  # tokens of a text whose cache is told


def look_at(path: Path) -> dict[str, Any]:
    """Describe the model that a command names, for a picture of it.

    Raises:
        InputError: see `compiler.opened.open_model`.
    """
    opened = open_model(path)
    origin = describe_origin(opened.path, READ) if opened.path.is_dir() else None
    return shape_of(opened.config) | {"name": str(path)} | ({"origin": origin} if origin is not None else {})


def shape_of(config: ModelConfig) -> dict[str, Any]:
    """Say what `sizes` does, and besides what stands outside of the layers, what can be cut, and each layer's cache."""
    about, found = card_of(config), sizes(config)
    for index, layer in enumerate(found["layers"]):
        alone = config.with_layers([config.layers[index]])
        layer["cache_bytes_per_token"] = about.cache_bytes(alone)
    return found | {
        "title": about.title(config),
        "long_text": {"tokens": LONG, "cache_bytes": about.cache_bytes(config, LONG)},
        "outside": _outside(config),
        "sites": list(_units(config)),
        "fixed": [f"{unit} cannot be cut: {why}" for unit, why in about.fixed_units(config).items()],
    }


def sizes(config: ModelConfig) -> dict[str, Any]:
    """Say what `schemas/inspect.schema.json` has that takes no trace."""
    return {
        "family": config.family,
        "parameters": {"total": config.parameters(), "prunable": removable(config, SUBLAYERS)},
        "cache_bytes_per_token": card_of(config).cache_bytes(config),
        "layers": [_layer(config, index) for index in range(len(config.layers))],
    }


def _layer(config: ModelConfig, index: int) -> dict[str, Any]:
    found: dict[str, Any] = {"index": index} | dict.fromkeys(SUBLAYERS)
    counts = config.layers[index].counts
    for kind in sublayers_of(counts):
        there = {UNITS[unit].field: count for unit, count in counts.items() if INSIDE[unit] == kind}
        found[kind] = there | {"parameters": unit_cost(config, index, kind)}
    return found


def _outside(config: ModelConfig) -> dict[str, int]:
    """Count the parameters outside of the layers: of the embedding, of a head that is not it, and of the rest."""
    layers = sum(unit_cost(config, index, "block") for index in range(len(config.layers)))
    table, heads = config.vocab_size * config.width, 0 if config.tie_word_embeddings else 1
    rest = config.parameters() - layers - (1 + heads) * table
    return {"embedding": table, "head": heads * table, "others": rest}


def _units(config: ModelConfig) -> Iterator[dict[str, Any]]:
    """List layer by layer the units inside sublayers that can be cut, then the sublayers themselves."""
    fixed = card_of(config).fixed_units(config)
    for index, layer in enumerate(config.layers):
        inside = {unit: count for unit, count in layer.counts.items() if unit not in fixed}
        for unit, count in (inside | dict.fromkeys(sublayers_of(layer.counts), 1)).items():
            saves = unit_cost(config, index, unit)
            yield {"layer": index, "unit": unit, "size": count, "parameters_each": saves}
