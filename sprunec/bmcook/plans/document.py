"""The parts of the plan around its passes, from the script's flags and the distillation section of bmcook.json."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sprunec.bmcook.plans.patterns import PLACEHOLDER
from sprunec.bmcook.plans.plan_builder import BmcookSection, PlanBuilder
from sprunec.checkpoint.layouts import CONFIG, has_weights
from sprunec.errors import show
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.plan.bmcook_flags import NATIVE, Flags
from sprunec.plan.model_config import read_config
from sprunec.plan.source import Source, read_source

HELD_OUT = 0.02
PAIR = "[post]encoder.output_layernorm:[post]encoder.output_layernorm"
EVALUATED = 200_000
DATA = ("data_bin_path", "max_length", "batch_size")
TRAINING = ("lr", "lr_decay_style", "warmup_iters", "weight_decay", "clip_grad", "save_iters")


def plan_document(plan: PlanBuilder, bmcook: Source, config: str, half: bool, *, prunes: bool) -> dict[str, Any]:
    """Make the plan of `plan`'s passes and the flags; one that doesn't prune may start without a checkpoint.

    Args:
        config: the model config's path, and `half` whether it is trained in half precision.
    """
    flags = plan.flags
    model: dict[str, Any] = {"config": config}
    brings_weights = os.path.isdir(config) and has_weights(Path(config))
    if flags.load is not None or (prunes and not brings_weights):
        model["checkpoint"] = flags.of("load")
    if flags.start_step:
        model["start_step"] = flags.start_step
    save_name = flags.of("save_name")
    name = re.sub(r"[^A-Za-z0-9._-]", "-", save_name)[:100].lstrip(".") or "bmcook"  # what a plan's name can hold
    document: dict[str, Any] = {"name": name, "seed": flags.of("seed"), "model": model}
    if plan.trained:
        document["data"] = {"source": "cpm-live"} | _options(flags, DATA) | {"held_out": HELD_OUT}
        training = {"optimizer": "adamw"} | _options(flags, TRAINING)
        training["warmup_steps"] = round(training["warmup_steps"])
        if half or flags.loss_scale is not None:
            training["loss_scale"] = flags.of("loss_scale")
        document["training"] = training | _distillation(plan, bmcook, prunes)
        document["evaluate"] = {"tokens": EVALUATED}
        document["outputs"] = {"checkpoint": f"{save_name}-{flags.of('start_step') + plan.trained}.pt"}
    document["engine"] = {"name": "torch", "device": "auto", "precision": "fp16" if half else "fp32"}
    return document | {"passes": plan.passes}


def _options(flags: Flags, names: tuple[str, ...]) -> dict[str, Any]:
    """Give the flags' values under the names that they have in a section of a plan."""
    return {NATIVE[name].rpartition("/")[2]: flags.of(name) for name in names}


def _distillation(plan: PlanBuilder, bmcook: Source, prunes: bool) -> dict[str, Any]:
    """Give the training option of this name, none where both weights are 0.

    The teacher is the dense model that is about to be pruned; where nothing is pruned, the checkpoint itself.
    """
    section, flags = plan.section(bmcook, "/distillation"), plan.flags
    given, options = section.written, dict[str, Any]()
    if given.get("mse_att_scale"):
        message = "the distance between attention maps is not done; the original counted it and never used it"
        section.error("not-done", "mse_att_scale", message, "write 0", at_key=True)
    if given.get("ce_scale"):
        options |= {"logits": given["ce_scale"], "temperature": given.get("ce_temp", 1)}
    if given.get("mse_hidn_scale"):
        named = [pair for i, text in enumerate(given.get("mse_hidn_module", [])) if (pair := _pair(section, text, i))]
        if not named:
            message = "mse_hidn_scale is above 0, and mse_hidn_module names no modules"
            section.error("missing-key", "mse_hidn_scale", message, f'write "mse_hidn_module": ["{PAIR}"]')
        options |= {"hidden": given["mse_hidn_scale"], "pairs": named, "project": given.get("mse_hidn_proj", False)}
    if not options:
        if flags.teacher:
            message = "--teacher is not used: ce_scale and mse_hidn_scale are 0"
            section.warn("unused-flag", "", message, "give one of them a weight, or leave out the flag")
        return {}
    if prunes and flags.start_step and not flags.teacher:
        # a later stage starts from what an earlier one has trained, which is not the dense model any more
        message = f"the teacher is {flags.of('load')}, which has had {flags.start_step} steps of this chain"
        section.warn("trained-teacher", "", message, "give the dense checkpoint with --teacher")
    if teacher := flags.teacher if prunes else flags.teacher or flags.load:
        options["teacher"] = teacher
    elif not prunes:
        message = "there is nothing to distil from: nothing is pruned, and the model starts from no checkpoint"
        section.error("no-teacher", "", message, "give --teacher")
    plan.origins["/training/distillation"] = (bmcook, "/distillation")
    plan.origins["/training/distillation/pairs"] = (bmcook, "/distillation/mse_hidn_module")
    return {"distillation": options}


def _pair(section: BmcookSection, text: Any, index: int) -> str | None:
    """Give student:teacher, each with its [pre] or [post]; the short forms of early files are written out."""
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


def config_path(bmcook: Source, flags: Flags) -> str:
    """Give the model config's path: the one given, the script's, or one of the same name beside bmcook.json."""
    path: str = flags.of("model_config")
    beside = Path(bmcook.file).parent / Path(path).name
    missing = flags.model_config is None and not os.path.exists(path)
    return str(beside) if missing and beside.exists() else path


def read_if_there(path: str) -> tuple[ModelConfig | None, bool]:
    """Read a config, and whether the model is trained in half precision; what is wrong with it is told later."""
    if os.path.isdir(path):
        path = os.path.join(path, CONFIG)
    if not os.path.isfile(path):
        return None, True
    config = read_config(path)[0]
    assert config is None or isinstance(config, ModelConfig)
    return config, config is None or read_source(path).value.get("half", True) is not False
