"""mask_method sprune (a block in bmcook.json, three generations of keys) and structure (sprune.json beside it).

bmcook.json, first keys     training_mask, fixed_mask_path, mask_mode, target_sparsity
             later          training_mask, mask_path, mode, start_sparsity, hard_binarize
             last           training_mask, mask_path, is_training, tuning
sprune.json                 main {training_mask, fixed_mask_path, mask_mode, target_mode},
                            target_mode {sparsity, dimension}
"""

from __future__ import annotations

from typing import Any

from sprunec.bmcook.plans.plan_builder import PlanBuilder, Section
from sprunec.plan.source import Source
from sprunec.units import INSIDE, UNITS

UNIT = {
    "transformer": "block",
    "transformer_layer": "block",
    "att": "attention",
    "self_att_layer": "attention",
    "ffn": "feed_forward",
    "ffn_layer": "feed_forward",
    "num_heads": "head",
    "dim_head": "dim_head",
    "dim_ff": "dim_ff",
}
NOT_HERE = {
    "cross_att_layer": ("CPM-Ant has no cross attention", "remove it"),
    "dim_model": ("the width of the residual stream is not cut", "remove it"),
}
AT_ONCE = "a mask that comes into force bit by bit is not done; it does at once"


def add_block(plan: PlanBuilder, source: Source) -> None:
    """Add the passes of the `sprune` block in bmcook.json."""
    pruning = Section(plan, source, "/pruning", source.value["pruning"])
    options = pruning.options.get("sprune")
    if not isinstance(options, dict):
        hint = 'add "sprune": {"training_mask": ["num_heads"], "mask_path": "mask.bin", "is_training": true, ...}'
        pruning.error("missing-key", "", 'mask_method "sprune" needs a "sprune" block', hint)
        return
    section = Section(plan, source, "/pruning/sprune", options)
    _warn_of_idle(section)
    learns, key = _mode(options)
    path = options.get(key, "")
    for other in {"mask_path", "fixed_mask_path"} - {key}:
        if options.get(other) and options[other] != path:
            message = f"{other} is not used beside {key}, which these keys go with"
            section.warn("unused-option", other, message, f"write {key}", at_key=True)
    if learns:
        units, sparsity = _units(section), options.get("target_sparsity")
        if sparsity is None:
            section.error("missing-key", "", '"target_sparsity" is missing', 'add "target_sparsity": 0.5')
        elif units:
            given = key == "fixed_mask_path"
            if given and path:
                section.load(key)
            save = "" if given else path
            entry = {"unit": units, "target": {"sparsity": sparsity}, **({"mask_form": "plugin"} if save else {})}
            section.learn(entry, save, target__sparsity="target_sparsity", unit="training_mask")
    elif path:
        section.load(key)
        section.finetune()
    else:
        section.error("missing-key", "", f"the mask is fixed, and {key} names no file", f'add "{key}"')


def add_structure(plan: PlanBuilder, source: Source) -> None:
    """Add the passes of a whole sprune.json."""
    main = Section(plan, source, "/main", source.value["main"])
    options = main.options
    if options.get("iterational"):
        main.warn("unused-option", "iterational", AT_ONCE, "write false")
    if given := bool(options.get("fixed_mask_path")):
        main.load("fixed_mask_path")
    if options.get("mask_mode", "train_mask") != "train_mask":
        if not given:
            hint = 'add "fixed_mask_path", or write "mask_mode": "train_mask"'
            main.error("missing-key", "", "the mask is fixed, and fixed_mask_path names no file", hint)
        main.finetune()
        return
    units = _units(main)
    target = _target(Section(plan, source, "", source.value), options, units)
    if units and target:
        name, value, key = target
        scope = {} if name == "sparsity" else {"budget": "per-layer"}
        main.learn({"unit": units, "target": {name: value}, **scope}, "")
        plan.origins[f"/passes/{len(plan.passes) - 1}/target/{name}"] = (source, f"/{key}")


def _mode(options: dict[str, Any]) -> tuple[bool, str]:
    """Whether the mask is learned, and the key that names its file; by whichever keys are there."""
    if "is_training" in options:
        return bool(options["is_training"]), "mask_path"
    if "mode" in options:
        return options["mode"] != "tuning", "mask_path"
    if "mask_mode" in options or "fixed_mask_path" in options:
        return options.get("mask_mode", "train_mask") == "train_mask", "fixed_mask_path"
    return True, "mask_path"


def _units(section: Section) -> list[str]:
    """Our units for BMCook's, without those that this model has not."""
    names = section.options.get("training_mask")
    if not isinstance(names, list) or not names:
        section.error("missing-key", "", '"training_mask" is missing', 'add "training_mask": ["num_heads"]')
        return []
    for index, name in enumerate(names):
        if name in NOT_HERE:
            section.warn("unused-option", f"training_mask/{index}", *NOT_HERE[name])
    units = list(dict.fromkeys(UNIT[name] for name in names if name in UNIT))
    if not units:
        section.error("nothing-to-prune", "training_mask", "nothing of this can be pruned", 'write ["num_heads"]')
    return units


def _target(whole: Section, main: dict[str, Any], units: list[str]) -> tuple[str, Any, str] | None:
    """The target of a sprune.json with its value and where it stands; it was called training_mode, then target_mode."""
    options = whole.options
    section = next((name for name in ("target_mode", "training_mode") if isinstance(options.get(name), dict)), "")
    mode = main.get("target_mode") or main.get("training_mode") or "sparsity"
    mode = "dimension" if mode == "dimention" else mode
    value, key = options.get(section, {}).get(mode), f"{section}/{mode}"
    if value is None:
        hint = f'add "target_mode": {{"{mode}": {0.67 if mode == "sparsity" else 350}}}'
        whole.error("missing-key", "", f"there is no {mode} to reach", hint)
        return None
    if mode == "sparsity":
        return "sparsity", value, key
    if len(units) == 1 and units[0] in INSIDE:
        return UNITS[units[0]].target, value, key
    hint = "have training_mask name one of num_heads, dim_head, dim_ff"
    whole.error("unit-mismatch", key, "a dimension counts one kind of unit", hint)
    return None


def _warn_of_idle(section: Section) -> None:
    """Options that the original had a use for, and that have none here."""
    options = section.options
    if options.get("start_sparsity"):
        message = "gates start open, and the target goes from full size to its own: start_sparsity is not used"
        section.warn("unused-option", "start_sparsity", message, at_key=True)
    if options.get("hard_binarize") is False:
        message = "a mask always keeps exactly its target: hard_binarize is not used"
        section.warn("unused-option", "hard_binarize", message, at_key=True)
    if (options.get("tuning") or {}).get("iterative"):
        section.warn("unused-option", "tuning/iterative", AT_ONCE, "write false")
