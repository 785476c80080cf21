"""Warn of text that is trained on again and again, and of held-out text that is trained on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sprunec.data.file_sets import expanded
from sprunec.data.text_amounts import training_tokens_about
from sprunec.plan.written_plan import CHARACTERS, WrittenPlan, as_list

# How often a text may be gone through: of a new model about four times are as good as new text, and sixteen add hardly
# anything (Muennighoff et al. 2023); what a model that knows more sees often it learns by heart.
NEW, TRAINED = 5.0, 2.0


def text_lasts(plan: WrittenPlan) -> None:
    """Compare the tokens that training asks for with those that the text has, by the sizes of its files."""
    data, config = plan.options("data"), plan.config
    steps = sum(step.options["steps"] for step in plan.valid_steps if step.declared.trains)
    if "data" not in plan.written or config is None or not steps:
        return
    share = data.get("held_out")
    known = training_tokens_about(
        data.get("source", ""), _files(plan, "path"), share, by_character=plan.tokenizer == CHARACTERS
    )
    asked = steps * data.get("batch_size", 0) * (data.get("max_length", 0) - config.overhead)
    most = TRAINED if "checkpoint" in plan.section("model").written else NEW
    if known and asked > most * known:
        times = f"it is gone through {asked / known:.1f} times"
        message = f"training asks for {asked:,} tokens, and the text has about {known:,}: {times}"
        plan.warn("repeated-text", "/data", message, "give more text, or fewer steps")


def held_out_apart(plan: WrittenPlan) -> None:
    """Check that no file is both trained on and held out; what texts have in common is for `run` to find."""
    trained = {os.path.realpath(path) for path in _files(plan, "path")}
    for path in _files(plan, "held_out"):
        if os.path.realpath(path) in trained:
            message = f"{path} is trained on, too: its loss says how well it was learned by heart"
            hint = "hold out a share of it, such as 0.1, or another file"
            plan.warn("held-out-overlap", "/data/held_out", message, hint)


def _files(plan: WrittenPlan, key: str) -> list[Path]:
    """List the files of texts that the data's `path`, or `held_out`, means."""
    data = plan.options("data")
    named: Any = data.get(key, ())
    if data.get("source") in ("cpm-live", "datasets") or isinstance(named, float):
        return []
    return [file for each in as_list(named) for file in expanded(plan.source.folder / each, data.get("source", ""))]
