"""BMCook's files as its users have them, written into a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sprunec.bmcook.plans.stages_to_plan import convert
from sprunec.errors import Diagnostic
from sprunec.plan.bmcook_flags import NO_FLAGS, Flags
from sprunec.plan.source import Source, read_source
from tests.helpers.small_plans import MODEL

CONFIG = MODEL | {"half": False}
FINE = {
    "train_mask": True,
    "num_heads": 8,
    "dim_ff": 48,
    "target_num_heads": 3,
    "target_dimff": 20,
    "heads_mask": "results/sprune/heads.pt",
    "dimff_mask": "results/sprune/dims.pt",
    "prune_mode": "att",
}
COARSE = {"train_mask": True, "coarse_mask": "results/sprune/layers.pt", "target_sparsity": 0.4}


def bmcook(method: str, *, is_pruning: bool = True, **others: Any) -> dict[str, Any]:
    return {"pruning": {"is_pruning": is_pruning, "mask_method": method}, **others}


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1), encoding="utf-8")
    return path


def converted(folder: Path, content: dict[str, Any], flags: Flags = NO_FLAGS, *seconds: Any, **files: Any) -> Source:
    """The plan of bmcook.json with `files` (by stem) beside it; `seconds` are stages."""
    for stem, second in files.items():
        write(folder, f"{stem}.json", second)
    stages = [write(folder, f"stage{index}.json", stage) for index, stage in enumerate(seconds)]
    return convert(read_source(write(folder, "bmcook.json", content)), stages, flags)


def said(source: Source, code: str) -> list[Diagnostic]:
    return [finding for finding in source.problems if finding.code == code]


def errors(source: Source) -> list[str]:
    return [str(finding) for finding in source.problems if finding.severity == "error"]
