"""The distillation section of bmcook.json."""

from __future__ import annotations

from typing import Any

from sprunec.bmcook.plans.patterns import PLACEHOLDER
from sprunec.bmcook.plans.plan_builder import PlanBuilder, Section
from sprunec.errors import show
from sprunec.plan.source import Source

PAIR = "[post]encoder.output_layernorm:[post]encoder.output_layernorm"


def distillation(plan: PlanBuilder, source: Source, *, prunes: bool) -> dict[str, Any] | None:
    """Give the training option of this name, or None where both weights are 0.

    The teacher is the dense model that is about to be pruned; where nothing is pruned, the checkpoint itself.
    """
    written = source.value.get("distillation")
    section = Section(plan, source, "/distillation", written if isinstance(written, dict) else {})
    given, flags = section.options, plan.flags
    if given.get("mse_att_scale"):
        message = "the distance between attention maps is not done; the original counted it and never used it"
        section.error("not-done", "mse_att_scale", message, "write 0", at_key=True)
    options: dict[str, Any] = {}
    if given.get("ce_scale"):
        options |= {"logits": given["ce_scale"], "temperature": given.get("ce_temp", 1)}
    if given.get("mse_hidn_scale"):
        named = [pair for i, text in enumerate(given.get("mse_hidn_module", [])) if (pair := _pair(section, text, i))]
        if not named:
            message = "mse_hidn_scale is above 0, and mse_hidn_module names no modules"
            section.error("missing-key", "mse_hidn_scale", message, f'write "mse_hidn_module": ["{PAIR}"]')
        options |= {"hidden": given["mse_hidn_scale"], "pairs": named, "project": given.get("mse_hidn_proj", False)}
    if flags.teacher and not options:
        message = "--teacher is not used: ce_scale and mse_hidn_scale are 0"
        section.warn("unused-flag", "", message, "give one of them a weight, or leave out the flag")
    elif options and prunes and flags.start_step and not flags.teacher:
        # a later stage starts from what an earlier one has trained, which is not the dense model any more
        message = f"the teacher is {flags.of('load')}, which has had {flags.start_step} steps of this chain"
        section.warn("trained-teacher", "", message, "give the dense checkpoint with --teacher")
    teacher = flags.teacher if prunes else flags.teacher or flags.load
    if options and teacher:
        options["teacher"] = teacher
    elif options and not prunes:
        message = "there is nothing to distil from: nothing is pruned, and the model starts from no checkpoint"
        section.error("no-teacher", "", message, "give --teacher")
    return options or None


def _pair(section: Section, text: Any, index: int) -> str | None:
    """student:teacher, each with its [pre] or [post]; the short forms of early files are written out."""
    key = f"mse_hidn_module/{index}"
    if not isinstance(text, str):
        return None  # the schema has said so
    if text == PLACEHOLDER:
        section.warn("placeholder", key, f"{show(text)} names nothing", "name a pair of modules, or remove it")
        return None
    student, _, teacher = text.partition(":")
    sides = (student, teacher or student)
    full = ":".join(side if side.startswith(("[pre]", "[post]")) else f"[post]{side}" for side in sides)
    if any(not side.partition("]")[2] for side in full.split(":")):
        section.error("bad-pair", key, f"{show(text)} names no module", f'write "{PAIR}"')
        return None
    if full != text:
        message = f"{show(text)} is short for {show(full, 200)}; the original stops at it"
        section.warn("short-pair", key, message, "write it out")
    return full
