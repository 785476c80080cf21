"""What is trained where speed and memory are measured: CPM-Ant of any size, and how."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from measure import measure

from sprunec.families.cpm_ant.config import ModelConfig

TRAINING: dict[str, Any] = {
    "optimizer": "adamw",
    "betas": (0.9, 0.999),
    "learning_rate": 1e-4,
    "schedule": "constant",
    "warmup_steps": 0,
    "weight_decay": 0.01,
    "clip_grad": 1.0,
    "accumulate": 1,
    "loss_scale": 1.0,
}


def model_of(width: int, layers: int, **changes: int) -> ModelConfig:
    """Heads of 32, so many that they are as wide as the stream."""
    shape = {"dim_model": width, "num_heads": width // 32, "dim_head": 32, "dim_ff": 4 * width, "num_layers": layers}
    types = {"vocab_size": 512, "prompt_types": 3, "prompt_length": 4, "segment_types": 3}
    return ModelConfig.from_dict(shape | types | changes)


MASKS = """
import json, sys
from pathlib import Path
from sprunec.masks.mask_tensors import write_masks
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.base_config import everything
from sprunec.units import Kept
folder = Path(sys.argv[1])
config, kept = (json.loads((folder / name).read_text()) for name in ("whole.json", "kept.json"))
write_masks(folder / "masks", everything(ModelConfig.from_dict(config)), Kept.from_json(kept))
"""


def write_masks(folder: Path, config: ModelConfig, kept: list[dict[str, list[int] | None]]) -> None:
    """The folder `masks`, in BMCook's form, made by a process of its own: this one does not import torch."""
    (folder / "whole.json").write_text(json.dumps(config.to_dict() | {"layers": None}))
    (folder / "kept.json").write_text(json.dumps(kept))
    assert measure([sys.executable, "-c", MASKS, folder]).code == 0
