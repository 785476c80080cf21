"""mask_method coarse-grained and fine-grained: one l0_pruning.json is one stage of the guide's chain.

`prune_mode` decides what is output (its own mask, which is never read) and what is input (the other mask, if the file
is there). `train_mask` false fine-tunes under both.
"""

from __future__ import annotations

import os

from sprunec.bmcook.plans.plan_builder import BmcookSection, PlanBuilder, age
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.plan.bmcook_flags import L0_SECTIONS
from sprunec.plan.source import Source

# what a `prune_mode` learns: the unit, what counts it here and in the file, such a count, its own mask, the other one
MODES = {
    "att": ("head", "num_heads", "target_num_heads", 4, "heads_mask", "dimff_mask"),
    "ffn": ("dim_ff", "dim_ff", "target_dimff", 350, "dimff_mask", "heads_mask"),
}


def add_stage(plan: PlanBuilder, source: Source, method: str, config: ModelConfig | None, *, alone: bool) -> None:
    """Add the passes of one file; in a chain of several (`alone` false) a file that has one section means that one."""
    other = None if alone else next((name for name in L0_SECTIONS if name in source.value), None)
    name = method if method in source.value else other
    if name is None:
        message = f'there is no section "{method}", which mask_method in bmcook.json asks for'
        plan.section(source).error("missing-key", "", message, f'add "{method}", or change mask_method')
        return
    if not isinstance(source.value[name], dict):
        return  # the schema has said so
    section = plan.section(source, f"/{name}")
    if "train_mask" not in section.written:
        section.error("missing-key", "", '"train_mask" is missing', 'add "train_mask": true to learn a mask')
    elif name == "fine-grained":
        _fine(section, config)
    elif not section.written["train_mask"]:
        if section.need("coarse_mask", "results/sprune/2B_layer_mask.pt") is not None:
            section.load("coarse_mask")
            section.finetune()
    elif (sparsity := section.need("target_sparsity", 0.67)) is not None:
        entry = {"unit": "layer", "target": {"sparsity": sparsity}}
        origins = {"target/sparsity": "target_sparsity", "save_mask": "coarse_mask"}
        section.learn(entry, section.written.get("coarse_mask", ""), origins)


def _fine(section: BmcookSection, config: ModelConfig | None) -> None:
    options = section.written
    # the original believed the sizes that the file says again, and its masks then had the wrong width
    for key, size in {"num_heads": config.num_heads, "dim_ff": config.dim_ff}.items() if config is not None else ():
        if isinstance(written := options.get(key), int) and written != size:
            message = f"{key} {written} disagrees with the model config, which says {size}"
            hint = "the model config counts; the original made masks of the wrong width"
            section.warn("config-mismatch", key, message, hint)
    loaded = ["coarse_mask"] if options.get("coarse_mask") else []
    if not options["train_mask"]:
        section.load(*loaded, *_fixed_masks(section))
        section.finetune()
        return
    if (name := section.need("prune_mode", "att")) not in MODES:
        return
    unit, target, wanted, example, own, other = MODES[name]
    if (count := section.need(wanted, example)) is None:
        return
    if (path := options.get(other)) and not section.plan.has_made(path):  # the mask that this stage doesn't learn
        if os.path.exists(path):
            hint = "remove the file if it shouldn't be"
            section.warn("other-mask", other, f"{path}, made {age(path)}, is in force", hint)
            loaded.append(other)
        else:
            section.not_yet(other)
    section.load(*loaded)
    if own not in options:
        message = f"{own} is not given, so the mask is only in OUT/masks; the original put it into another file"
        section.warn("no-mask-path", "", message, f"add {own}")
    entry = {"unit": unit, "target": {target: count}, "budget": "per-layer"}
    section.learn(entry, options.get(own, ""), {f"target/{target}": wanted, "save_mask": own})


def _fixed_masks(section: BmcookSection) -> list[str]:
    """Give the keys of both masks, as far as there are files; if there is none, both are asked for."""
    named = {key: path for key in ("heads_mask", "dimff_mask") if (path := section.written.get(key))}
    if not named:
        message = "train_mask is false, and neither heads_mask nor dimff_mask is given"
        section.error("missing-key", "", message, 'add "heads_mask": "results/sprune/300M_head_mask.pt"')
    there = [key for key, path in named.items() if section.plan.has_made(path) or os.path.exists(path)]
    for key in named if there else ():
        if key not in there:
            section.not_yet(key)
    return there or list(named)
