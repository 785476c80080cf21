"""mask_method sprune (a block in bmcook.json, three generations of keys) and structure (sprune.json beside it).

bmcook.json, first keys     training_mask, fixed_mask_path, mask_mode, target_sparsity
             later          training_mask, mask_path, mode, start_sparsity, hard_binarize
             last           training_mask, mask_path, is_training, tuning
sprune.json                 main {training_mask, fixed_mask_path, mask_mode, target_mode},
                            target_mode {sparsity, dimension}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sprunec.bmcook.plans.plan_builder import BmcookSection, PlanBuilder
from sprunec.plan.source import Source
from sprunec.units import INSIDE, UNITS

UNIT = {
    **dict.fromkeys(("transformer", "transformer_layer"), "block"),
    **dict.fromkeys(("att", "self_att_layer"), "attention"),
    **dict.fromkeys(("ffn", "ffn_layer"), "feed_forward"),
    "num_heads": "head",
    "dim_head": "dim_head",
    "dim_ff": "dim_ff",
}
NOT_HERE = {
    "cross_att_layer": "CPM-Ant has no cross attention",
    "dim_model": "the width of the residual stream is not cut",
}
AT_ONCE = "a mask that comes into force bit by bit is not done; it does at once"


def add_block(plan: PlanBuilder, source: Source) -> None:
    """Add the passes of the `sprune` block in bmcook.json."""
    section = plan.section(source, "/pruning/sprune")
    options = section.written
    if not isinstance(source.value["pruning"].get("sprune"), dict):
        hint = 'add "sprune": {"training_mask": ["num_heads"], "mask_path": "mask.bin", "is_training": true, ...}'
        section.error("missing-key", "/pruning", 'mask_method "sprune" needs a "sprune" block', hint)
        return
    if options.get("start_sparsity"):
        message = "gates start open, and the target goes from full size to its own: start_sparsity is not used"
        section.unused("start_sparsity", message, "")
    if options.get("hard_binarize") is False:
        section.unused("hard_binarize", "a mask always keeps exactly its target: hard_binarize is not used", "")
    if (options.get("tuning") or {}).get("iterative"):
        section.warn("unused-option", "tuning/iterative", AT_ONCE, "write false")
    learns, key = _mode(options)
    (other,) = {"mask_path", "fixed_mask_path"} - {key}
    path = options.get(key, "")
    if options.get(other) and options[other] != path:
        section.unused(other, f"{other} is not used beside {key}, which these keys go with", f"write {key}")
    if learns:
        units, sparsity = _units(section), options.get("target_sparsity")
        if sparsity is None:
            section.error("missing-key", "", '"target_sparsity" is missing', 'add "target_sparsity": 0.5')
        elif units:
            entry, save = {"unit": units, "target": {"sparsity": sparsity}}, path
            if key == "fixed_mask_path":
                section.load(*([key] if path else ()))
                save = ""
            entry |= {"mask_form": "plugin"} if save else {}
            section.learn(entry, save, {"target/sparsity": "target_sparsity", "unit": "training_mask"})
    elif path:
        section.load(key)
        section.finetune()
    else:
        section.error("missing-key", "", f"the mask is fixed, and {key} names no file", f'add "{key}"')


def add_structure(plan: PlanBuilder, source: Source) -> None:
    """Add the passes of a whole sprune.json."""
    main = plan.section(source, "/main")
    if main.written.get("iterational"):
        main.warn("unused-option", "iterational", AT_ONCE, "write false")
    if given := bool(main.written.get("fixed_mask_path")):
        main.load("fixed_mask_path")
    if main.written.get("mask_mode", "train_mask") != "train_mask":
        if not given:
            hint = 'add "fixed_mask_path", or write "mask_mode": "train_mask"'
            main.error("missing-key", "", "the mask is fixed, and fixed_mask_path names no file", hint)
        main.finetune()
    else:
        _learn_structure(main)


def _mode(options: Mapping[str, Any]) -> tuple[bool, str]:
    """Tell whether the mask is learned, and the key that names its file; by whichever keys are there."""
    if "is_training" in options:
        return bool(options["is_training"]), "mask_path"
    if "mode" in options:
        return options["mode"] != "tuning", "mask_path"
    if "mask_mode" in options or "fixed_mask_path" in options:
        return options.get("mask_mode", "train_mask") == "train_mask", "fixed_mask_path"
    return True, "mask_path"


def _units(section: BmcookSection) -> list[str]:
    """Give our units for BMCook's, without those that this model has not."""
    names = section.written.get("training_mask")
    if not isinstance(names, list) or not names:
        section.error("missing-key", "", '"training_mask" is missing', 'add "training_mask": ["num_heads"]')
        return []
    for index, name in enumerate(names):
        if name in NOT_HERE:
            section.warn("unused-option", f"training_mask/{index}", NOT_HERE[name], "remove it")
    units = list(dict.fromkeys(UNIT[name] for name in names if name in UNIT))
    if not units:
        section.error("nothing-to-prune", "training_mask", "nothing of this can be pruned", 'write ["num_heads"]')
    return units


def _learn_structure(main: BmcookSection) -> None:
    """Learn to a sprune.json's target, which stands in a section that was called training_mode, then target_mode."""
    units, options, names = _units(main), main.source.value, ("target_mode", "training_mode")
    section = next((name for name in names if isinstance(options.get(name), dict)), "")
    mode = main.written.get("target_mode") or main.written.get("training_mode") or "sparsity"
    mode = "dimension" if mode == "dimention" else mode
    value, key = options.get(section, {}).get(mode), f"/{section}/{mode}"
    if value is None:
        hint = f'add "target_mode": {{"{mode}": {0.67 if mode == "sparsity" else 350}}}'
        main.plan.section(main.source).error("missing-key", "", f"there is no {mode} to reach", hint)
    elif mode != "sparsity" and not (len(units) == 1 and units[0] in INSIDE):
        hint = "have training_mask name one of num_heads, dim_head, dim_ff"
        main.error("unit-mismatch", key, "a dimension counts one kind of unit", hint)
    elif units:
        target = "sparsity" if mode == "sparsity" else UNITS[units[0]].target
        scope = {} if mode == "sparsity" else {"budget": "per-layer"}
        main.learn({"unit": units, "target": {target: value}, **scope}, "", {f"target/{target}": key})
