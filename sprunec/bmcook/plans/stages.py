"""mask_method coarse-grained and fine-grained: one l0_pruning.json is one stage of the guide's chain.

`prune_mode` decides what is output (its own mask, which is never read) and what is input (the other mask, if the file
is there). `train_mask` false fine-tunes under both.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from sprunec.bmcook.plans.plan_builder import Growing, age
from sprunec.errors import Diagnostic
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.plan.bmcook_flags import L0_SECTIONS
from sprunec.plan.source import Source

MADE_LATER = "it is made by a stage that learns it"


@dataclass(frozen=True)
class Mode:
    """What a `prune_mode` learns: the unit, what counts it here and in the file, its own mask, and the other one."""

    unit: str
    target: str
    wanted: str
    own: str
    other: str


MODES = {
    "att": Mode("head", "num_heads", "target_num_heads", "heads_mask", "dimff_mask"),
    "ffn": Mode("dim_ff", "dim_ff", "target_dimff", "dimff_mask", "heads_mask"),
}


def add_stage(plan: Growing, source: Source, method: str, config: ModelConfig | None, *, alone: bool) -> None:
    """The passes of one file; in a chain of several (`alone` false) a file that has one section means that one."""
    name = _section(source, method, alone)
    if name is None:
        message = f'there is no section "{method}", which mask_method in bmcook.json asks for'
        plan.error(source, "missing-key", "", message, f'add "{method}", or change mask_method')
        return
    options, pointer = source.value[name], f"/{name}"
    if not isinstance(options, dict):
        return  # the schema has said so
    if "train_mask" not in options:
        plan.error(source, "missing-key", pointer, '"train_mask" is missing', 'add "train_mask": true to learn a mask')
    elif name == "coarse-grained":
        _coarse(plan, source, options, pointer)
    else:
        _fine(plan, source, options, pointer, config)


def _section(source: Source, method: str, alone: bool) -> str | None:
    if method in source.value:
        return method
    other = next((name for name in L0_SECTIONS if name in source.value), None)
    return None if alone else other


def _coarse(plan: Growing, source: Source, options: dict[str, Any], pointer: str) -> None:
    path = options.get("coarse_mask", "")
    if options["train_mask"]:
        sparsity = _need(plan, source, options, pointer, "target_sparsity", 0.67)
        if sparsity is not None:
            entry = {"unit": "layer", "target": {"sparsity": sparsity}}
            places = {"target__sparsity": f"{pointer}/target_sparsity", "save_mask": f"{pointer}/coarse_mask"}
            plan.learn(source, pointer, entry, path, **places)
    elif _need(plan, source, options, pointer, "coarse_mask", "results/sprune/2B_layer_mask.pt") is not None:
        plan.load(source, {f"{pointer}/coarse_mask": path})
        plan.finetune(source, pointer)


def _fine(plan: Growing, source: Source, options: dict[str, Any], pointer: str, config: ModelConfig | None) -> None:
    if config is not None:
        plan.found += _disagreements(source, options, pointer, config)
    coarse = {f"{pointer}/coarse_mask": options["coarse_mask"]} if options.get("coarse_mask") else {}
    if not options["train_mask"]:
        plan.load(source, coarse | _fixed(plan, source, options, pointer))
        plan.finetune(source, pointer)
        return
    name = _need(plan, source, options, pointer, "prune_mode", "att")
    if name not in MODES:
        return
    mode = MODES[name]
    count = _need(plan, source, options, pointer, mode.wanted, 4 if name == "att" else 350)
    if count is None:
        return
    plan.load(source, coarse | _other(plan, source, options, pointer, mode.other))
    if mode.own not in options:
        message = f"{mode.own} is not given, so the mask is only in OUT/masks; the original put it into another file"
        plan.warn(source, "no-mask-path", pointer, message, f"add {mode.own}")
    entry = {"unit": mode.unit, "target": {mode.target: count}, "budget": "per-layer"}
    places = {f"target__{mode.target}": f"{pointer}/{mode.wanted}", "save_mask": f"{pointer}/{mode.own}"}
    plan.learn(source, pointer, entry, options.get(mode.own, ""), **places)


def _other(plan: Growing, source: Source, options: dict[str, Any], pointer: str, key: str) -> dict[str, str]:
    """The mask that this stage doesn't learn, if there is one by now."""
    path, place = options.get(key, ""), f"{pointer}/{key}"
    if not path or plan.has_made(path):
        return {}
    if not os.path.exists(path):
        plan.warn(source, "no-mask-yet", place, f"there is no {path}: this stage runs without it", MADE_LATER)
        return {}
    plan.warn(
        source, "other-mask", place, f"{path}, made {age(path)}, is in force", "remove the file if it shouldn't be"
    )
    return {place: path}


def _fixed(plan: Growing, source: Source, options: dict[str, Any], pointer: str) -> dict[str, str]:
    """Both masks, as far as there are files; if there is none, both are asked for."""
    named = {key: options[key] for key in ("heads_mask", "dimff_mask") if options.get(key)}
    if not named:
        message = "train_mask is false, and neither heads_mask nor dimff_mask is given"
        plan.error(source, "missing-key", pointer, message, 'add "heads_mask": "results/sprune/300M_head_mask.pt"')
    there = {key: path for key, path in named.items() if plan.has_made(path) or os.path.exists(path)}
    for key, path in named.items():
        if there and key not in there:
            message = f"there is no {path}: this stage runs without it"
            plan.warn(source, "no-mask-yet", f"{pointer}/{key}", message, MADE_LATER)
    return {f"{pointer}/{key}": path for key, path in (there or named).items()}


def _need(plan: Growing, source: Source, options: dict[str, Any], pointer: str, key: str, example: Any) -> Any:
    """An option that this mode can't do without; what is wrong with its value the schema has said."""
    if options.get(key) not in (None, ""):
        return options[key]
    shown = f'"{example}"' if isinstance(example, str) else example
    plan.error(source, "missing-key", pointer, f'"{key}" is missing', f'add "{key}": {shown}')
    return None


def _disagreements(source: Source, options: dict[str, Any], pointer: str, config: ModelConfig) -> list[Diagnostic]:
    """Sizes that the file says again; the original believed the file, and its masks then had the wrong width."""
    sizes = {"num_heads": config.num_heads, "dim_ff": config.dim_ff}
    return [
        source.warn(
            "config-mismatch",
            f"{pointer}/{key}",
            f"{key} {options[key]} disagrees with the model config, which says {size}",
            "the model config counts; the original made masks of the wrong width",
        )
        for key, size in sizes.items()
        if isinstance(options.get(key), int) and options[key] != size
    ]
