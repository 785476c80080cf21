"""The format `cpm-live`: a `.pt` state dict and a JSON config that CPM-Live's own classes load, strictly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.durable import read_file, write_new
from sprunec.errors import FormatError
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.uniform import HEAD_APART, cpm_live_config, even_config, unevenness
from sprunec.plan.export_formats import Emission, Format, Reopened
from sprunec.units import INSIDE

if TYPE_CHECKING:
    from torch import Tensor

    from sprunec.checkpoint.reader import Tensors
    from sprunec.families.base import Inputs

WEIGHTS, CONFIG = "model.pt", "config.json"
INSTEAD = 'emit "sprunec" or "huggingface" instead of "cpm-live"'


def obstacles(config: Any) -> Iterator[tuple[str, str, str]]:
    """Find what the format cannot say: one config is for all layers, and the head is the embedding."""
    if not isinstance(config, ModelConfig):
        yield "other-family", "it is CPM-Ant's own", INSTEAD
        return
    if not config.tie_word_embeddings:
        yield "head-apart", HEAD_APART, INSTEAD
    for problem in unevenness(config)[:1]:
        yield "uneven-layers", problem, f"even it, or {INSTEAD}"


def write(emission: Emission, directory: Path) -> dict[str, Any]:
    import torch

    from sprunec.checkpoint.torch_writer import write_pt
    from sprunec.families.cpm_ant.folding import folded, stored_dtype
    from sprunec.families.model_directory import open_model_tensors

    config, state = emission.config, open_model_tensors(emission.model)
    assert isinstance(config, ModelConfig)
    problems = unevenness(config) if config.tie_word_embeddings else [HEAD_APART]
    if problems:
        raise FormatError(f"the format cpm-live cannot hold this model: {'; '.join(problems)}")
    dtype = stored_dtype(state, emission.options["dtype"])
    directory.mkdir()
    document = cpm_live_config(even_config(config), half=dtype == torch.float16)
    write_new(directory / CONFIG, json.dumps(document, indent=1))
    write_pt(folded(config, state, emission.options["dtype"]), directory / WEIGHTS)
    return {"dtype": str(dtype).removeprefix("torch.")}


def reopen(directory: Path, config: Any, weights: Tensors) -> Reopened:
    """Open it in float32 arithmetic, by its own config; divisors follow from the widths."""
    import torch

    from sprunec.checkpoint.reader import open_tensors
    from sprunec.families.base import family_of
    from sprunec.families.cpm_ant.folding import stored_dtype
    from sprunec.models.meta_models import empty_model
    from sprunec.models.streamed import Streamed

    about, tensors = ModelConfig.from_dict(json.loads(read_file(directory / CONFIG))), open_tensors(directory / WEIGHTS)

    def logits(inputs: list[Inputs]) -> Tensor:
        model = Streamed(family_of(about), empty_model(about), tensors, inputs, torch.float32, torch.device("cpu"))
        return torch.cat([some for _, some in model.logits()], dim=1)

    stored = stored_dtype(tensors, "keep")
    return Reopened(stored, stored, logits)


CPM_LIVE = Format(
    "cpm-live",
    write,
    reopen,
    alike=lambda config: tuple(INSIDE),
    same_heads=True,
    obstacles=obstacles,
    instead=INSTEAD,
    folds=True,
)
