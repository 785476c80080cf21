"""The distillation section of bmcook.json."""

from __future__ import annotations

from typing import Any

from sprunec.bmcook.plans.patterns import PLACEHOLDER
from sprunec.bmcook.plans.plan_builder import Growing
from sprunec.plan.pointer import show
from sprunec.plan.source import Source


def distillation(plan: Growing, source: Source, *, prunes: bool) -> dict[str, Any] | None:
    """The training option of this name, or None where both weights are 0.

    The teacher is the dense model that is about to be pruned; where nothing is pruned, the checkpoint itself.
    """
    section = source.value.get("distillation")
    section = section if isinstance(section, dict) else {}
    if section.get("mse_att_scale"):
        message = "the distance between attention maps is not done; the original counted it and never used it"
        plan.error(source, "not-done", "/distillation/mse_att_scale", message, "write 0", key=True)
    options: dict[str, Any] = {}
    if section.get("ce_scale"):
        options |= {"logits": section["ce_scale"], "temperature": section.get("ce_temp", 1)}
    if section.get("mse_hidn_scale"):
        pairs = [_pair(plan, source, text, index) for index, text in enumerate(section.get("mse_hidn_module", []))]
        named = [pair for pair in pairs if pair]
        if not named:
            message = "mse_hidn_scale is above 0, and mse_hidn_module names no modules"
            hint = 'write "mse_hidn_module": ["[post]encoder.output_layernorm:[post]encoder.output_layernorm"]'
            plan.error(source, "missing-key", "/distillation/mse_hidn_scale", message, hint)
        options |= {"hidden": section["mse_hidn_scale"], "pairs": named}
        options |= {"project": section.get("mse_hidn_proj", False)}
    _check_teacher(plan, source, bool(options), prunes)
    teacher = plan.flags.teacher if prunes else plan.flags.teacher or plan.flags.load
    if options and teacher:
        options["teacher"] = teacher
    elif options and not prunes:
        message = "there is nothing to distil from: nothing is pruned, and the model starts from no checkpoint"
        plan.error(source, "no-teacher", "/distillation", message, "give --teacher")
    return options or None


def _check_teacher(plan: Growing, source: Source, distils: bool, prunes: bool) -> None:
    """A later stage starts from what an earlier one has trained: that is not the dense model any more."""
    if plan.flags.teacher and not distils:
        message = "--teacher is not used: ce_scale and mse_hidn_scale are 0"
        plan.warn(source, "unused-flag", "/distillation", message, "give one of them a weight, or leave out the flag")
    elif distils and prunes and plan.flags.start_step and not plan.flags.teacher:
        message = f"the teacher is {plan.flags.of('load')}, which has had {plan.flags.start_step} steps of this chain"
        plan.warn(source, "trained-teacher", "/distillation", message, "give the dense checkpoint with --teacher")


def _pair(plan: Growing, source: Source, text: Any, index: int) -> str | None:
    """student:teacher, each with its [pre] or [post]; the short forms of early files are written out."""
    place = f"/distillation/mse_hidn_module/{index}"
    if not isinstance(text, str):
        return None  # the schema has said so
    if text == PLACEHOLDER:
        plan.warn(source, "placeholder", place, f"{show(text)} names nothing", "name a pair of modules, or remove it")
        return None
    student, _, teacher = text.partition(":")
    full = f"{_whole(student)}:{_whole(teacher or student)}"
    if any(not side.partition("]")[2] for side in full.split(":")):
        hint = 'write "[post]encoder.output_layernorm:[post]encoder.output_layernorm"'
        plan.error(source, "bad-pair", place, f"{show(text)} names no module", hint)
        return None
    if full != text:
        message = f"{show(text)} is short for {show(full, 200)}; the original stops at it"
        plan.warn(source, "short-pair", place, message, "write it out")
    return full


def _whole(module: str) -> str:
    return module if module.startswith(("[pre]", "[post]")) else f"[post]{module}"
