"""Tiny models of transformers on disk, as graphs, and which units of theirs are to be kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from sprunec.checkpoint.reader import Tensors, open_tensors
from sprunec.families.base_config import everything
from sprunec.families.cards import native
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.families.model_directory import fill
from sprunec.models.meta_models import empty_model
from sprunec.units import Kept
from tests.helpers.causal_lms import CONFIGS, EAGER_ONLY, causal_lm

# A norm over all of them; made in parts; slopes by their numbers.
HEADS = [name for name in CONFIGS if name not in ("olmo2", "minicpm3", "bloom")]
ATTENTION = ("kv_group", "head", "dim_head")
ABSENT: dict[str, tuple[int, tuple[str, ...]]] = {
    "attention": (0, ATTENTION),
    "feed_forward": (1, ("dim_ff",)),
    "block": (1, (*ATTENTION, "dim_ff")),
}


def saved(
    name: str, directory: Path, dtype: torch.dtype = torch.float32, **changes: Any
) -> tuple[Any, TransformersConfig, Tensors]:
    model = causal_lm(name, "eager" if name in EAGER_ONLY else "sdpa", **changes).to(dtype)
    model.save_pretrained(directory)
    config = TransformersConfig.from_dict(native(json.loads((directory / "config.json").read_text())))
    return model, config, open_tensors(directory)


def graphs(config: TransformersConfig, tensors: Tensors, directory: Path) -> Any:
    model = empty_model(config)
    fill(model, {name: tensors.copy(name).float() for name in tensors}, directory)
    return model.eval()


def fewer(config: TransformersConfig, without: str = "") -> Kept:
    """Other dims in each layer; of the first layer one group, of the second other heads in each group."""
    whole, left = everything(config), []
    for number, layer in enumerate(whole):
        kept = dict(layer) | {"dim_ff": layer["dim_ff"][1 + number : -9 : 2]}
        shape = config.layers[number]
        each = shape.heads // (shape.kv_groups or shape.heads)
        if config.document["model_type"] not in HEADS:
            pass
        elif not shape.kv_groups:
            kept["head"] = (0, 2, 3) if number == 0 else (1, 4)
        elif number == 0:
            kept |= {"kv_group": (1,), "head": (each, each + 2)}
        else:
            kept["head"] = tuple(group * each + place for group in (0, 1) for place in (group, 2))
        left.append(kept)
    if without:
        number, units = ABSENT[without]
        left[number] = {unit: kept for unit, kept in left[number].items() if unit not in units}
    return Kept(left)
