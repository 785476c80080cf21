"""What `emit` is told about the forms it writes, beyond their names."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from sprunec.graph.graph import file_digest
from sprunec.plan.format_checks import FOLDED
from sprunec.plan.plan import Plan

OWN_FORM = "sprunec"
TEXT_TASK, PAIRS_TASK = 2, 1
NEWEST = 5


def formats_of(plan: Plan) -> tuple[str, ...]:
    """What the plan ends with."""
    return tuple(form for spec in plan.passes if spec.name == "emit" for form in spec.options["formats"])


def emit_options(
    plan: Plan, formats: tuple[str, ...], dtype: str
) -> tuple[dict[str, Any], dict[str, tuple[Path, ...]]]:
    """Options that decide what the forms hold, and the files that go into them."""
    options: dict[str, Any] = {"formats": formats}
    files: dict[str, tuple[Path, ...]] = {}
    if set(formats) & set(FOLDED):
        options["dtype"] = dtype
    if "huggingface" in formats:
        options["transformers"] = transformers_release()
        options["task"] = PAIRS_TASK if plan.data is not None and plan.data.source == "pairs" else TEXT_TASK
        vocabulary = _vocabulary(plan)
        if vocabulary is not None:
            options["vocab"], files["vocab"] = file_digest(vocabulary), (vocabulary,)
    return options, files


def transformers_release() -> int:
    """The installed package's first number: from 5 on it keeps the head apart. The newest where there is none."""
    try:
        return int(metadata.version("transformers").split(".")[0])
    except (metadata.PackageNotFoundError, ValueError):
        return NEWEST


def _vocabulary(plan: Plan) -> Path | None:
    if plan.data is None:
        return None
    return plan.data.tokenizer if isinstance(plan.data.tokenizer, Path) else plan.data.vocab
