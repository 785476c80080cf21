"""GGUF files of models of transformers with only something left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sprunec.checkpoint.reader import open_tensors
from sprunec.families.base_config import everything
from sprunec.families.cards import native
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.families.model_directory import save_model
from sprunec.formats.gguf import FILE, write
from sprunec.models.meta_models import traced_shape
from sprunec.plan.export_formats import Emission
from sprunec.rewrite.recipe import make_recipe
from sprunec.units import Kept


def config_of(directory: Path) -> TransformersConfig:
    return TransformersConfig.from_dict(native(json.loads((directory / "config.json").read_text())))


def cut(model: Any, folder: Path, kept: Kept | None = None) -> TransformersConfig:
    """Save it as `dense`, and what is left of it as `small`."""
    model.save_pretrained(folder / "dense")
    config = config_of(folder / "dense")
    tensors, whole = open_tensors(folder / "dense"), everything(config)
    state = {name: tensors.copy(name) for name in config.tensors()}
    if kept is None:
        save_model(folder / "small", config, whole, state)
        return config
    small = config.cut(whole, kept)
    save_model(folder / "small", small, kept, make_recipe(traced_shape(config), kept.inside(whole)).cut(state))
    return small


def exported(model: Any, folder: Path, kept: Kept | None = None, **options: str) -> tuple[Path, Mapping[str, Any]]:
    """What `gguf` writes of it, and says of that."""
    small = cut(model, folder, kept)
    about = write(Emission(folder / "small", folder / "dense", small, {"gguf": options}, {}), folder / "gguf")
    return folder / "gguf" / FILE, about
