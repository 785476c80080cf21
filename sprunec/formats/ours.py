"""The format `sprunec`: config.json, safetensors, and model.py in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sprunec.families.base_config import ModelConfig
from sprunec.families.cards import card_of
from sprunec.plan.export_formats import Emission, Format


def write(emission: Emission, directory: Path) -> dict[str, Any]:
    """Hand weights on as they are; model.py is the graphs of the plan's input model, cut to what is kept of it."""
    from sprunec.checkpoint.writer import as_outputs, link_or_write
    from sprunec.families.model_directory import describe, open_model_tensors, read_config, read_kept
    from sprunec.models.model_source import write_model_py

    kept, everything = read_kept(emission.model), read_kept(emission.source)
    describe(directory, emission.config, kept)
    link_or_write(as_outputs(open_model_tensors(emission.model)), directory)
    write_model_py(directory, read_config(emission.source), kept.inside(everything), emission.config)
    return {}


def obstacles(config: ModelConfig) -> Iterator[tuple[str, str, str]]:
    """Find what keeps a model.py from being made: a library's own code around its blocks."""
    if not card_of(config).own_code:
        yield "library-class", "its class is transformers' own", 'emit "huggingface" instead of "sprunec"'


SPRUNEC = Format("sprunec", write, obstacles=obstacles, shares=lambda config: True)
