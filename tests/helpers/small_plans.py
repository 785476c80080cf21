"""Small plans for whole runs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch

import sprunec
from sprunec.families.cpm_ant.blocks import build, initialize
from sprunec.families.cpm_ant.config import ModelConfig

MODEL = {
    "vocab_size": 128,
    "dim_model": 32,
    "num_heads": 8,
    "dim_head": 8,
    "dim_ff": 48,
    "num_layers": 3,
    "position_bias_num_buckets": 16,
    "position_bias_max_distance": 64,
    "prompt_types": 3,
    "prompt_length": 2,
    "segment_types": 3,
}
TINY = {
    "vocab_size": 97,
    "dim_model": 24,
    "num_heads": 4,
    "dim_head": 6,
    "dim_ff": 40,
    "num_layers": 3,
    "prompt_types": 4,
    "prompt_length": 5,
    "segment_types": 6,
    "position_bias_num_buckets": 16,
    "position_bias_max_distance": 32,
}
TRAIN = {"pass": "train", "steps": 2}
EMIT = {"pass": "emit", "formats": ["sprunec"]}


def mask_pass(unit: Any, target: dict[str, Any], steps: int = 3, **options: Any) -> dict[str, Any]:
    return {"pass": "train-mask", "unit": unit, "target": target, "steps": steps, **options}


def plan(*passes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    content = {
        "name": "small",
        "seed": 7,
        "model": {"config": dict(MODEL)},
        "data": {"source": "python-docs", "max_length": 34, "batch_size": 4},
        "evaluate": {"tokens": 300},
        "passes": list(passes),
    }
    return copy.deepcopy(content | changes)


def write(directory: Path, content: dict[str, Any], name: str = "plan.json") -> Path:
    path = directory / name
    path.write_text(json.dumps(content))
    return path


def save_weights(path: Path, seed: int = 0, **changes: Any) -> Path:
    """A new model's state dict as torch saves it, of MODEL or a variant."""
    model = build(ModelConfig.from_dict(MODEL | changes))
    initialize(model, seed)
    torch.save(model.state_dict(), path)
    return path


def guide(**changes: Any) -> dict[str, Any]:
    """The guide's scheme in small: heads, recover, dims, recover, emit."""
    return plan(
        TRAIN,
        mask_pass("head", {"num_heads": 3}, budget="global"),
        {"pass": "finetune", "steps": 2},
        mask_pass("dim_ff", {"dim_ff": 20}, budget="global"),
        {"pass": "finetune", "steps": 2},
        EMIT,
        **changes,
    )


def execute(content: dict[str, Any], directory: Path, out: str = "out") -> dict[str, Any]:
    """The report of a run from Python."""
    directory.mkdir(parents=True, exist_ok=True)
    graph = sprunec.lower(sprunec.read_plan(write(directory, content)))
    return sprunec.execute(graph, directory / out).data


def read_report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def artifact(out: Path, pass_: str) -> Path:
    """The last artifact of a pass."""
    entries = [entry for entry in read_report(out)["passes"] if entry["pass"] == pass_]
    return out / "store" / entries[-1]["digest"]
