"""mask_method sprune (a block in bmcook.json, three generations of keys) and structure (sprune.json beside it).

bmcook.json, first keys     training_mask, fixed_mask_path, mask_mode, target_sparsity
             later          training_mask, mask_path, mode, start_sparsity, hard_binarize
             last           training_mask, mask_path, is_training, tuning
sprune.json                 main {training_mask, fixed_mask_path, mask_mode, target_mode},
                            target_mode {sparsity, dimension}
"""

from __future__ import annotations

from typing import Any

from sprunec.bmcook.plans.plan_builder import Growing
from sprunec.plan.source import Source

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
COUNTED = {"head": "num_heads", "dim_head": "dim_head", "dim_ff": "dim_ff"}


def add_block(plan: Growing, source: Source, pointer: str) -> None:
    """The `sprune` block at `pointer`."""
    options = source.value["pruning"].get("sprune")
    if not isinstance(options, dict):
        hint = 'add "sprune": {"training_mask": ["num_heads"], "mask_path": "mask.bin", "is_training": true, ...}'
        plan.error(source, "missing-key", "/pruning", 'mask_method "sprune" needs a "sprune" block', hint)
        return
    _idle(plan, source, options, pointer)
    learns, path, key = _mode(options)
    for other in {"mask_path", "fixed_mask_path"} - {key}:
        if options.get(other) and options[other] != path:
            message = f"{other} is not used beside {key}, which these keys go with"
            plan.warn(source, "unused-option", f"{pointer}/{other}", message, f"write {key}", key=True)
    if learns:
        units = _units(plan, source, options.get("training_mask"), f"{pointer}/training_mask")
        sparsity = options.get("target_sparsity")
        if sparsity is None:
            plan.error(source, "missing-key", pointer, '"target_sparsity" is missing', 'add "target_sparsity": 0.5')
        elif units:
            if key == "fixed_mask_path":
                plan.load(source, {f"{pointer}/{key}": path} if path else {})
                path = ""
            entry = {"unit": units, "target": {"sparsity": sparsity}, "mask_form": "plugin"}
            _learn(plan, source, pointer, entry, path, f"{pointer}/target_sparsity")
    elif path:
        plan.load(source, {f"{pointer}/{key}": path})
        plan.finetune(source, pointer)
    else:
        plan.error(source, "missing-key", pointer, f"the mask is fixed, and {key} names no file", f'add "{key}"')


def add_structure(plan: Growing, source: Source) -> None:
    """The whole sprune.json."""
    main = source.value["main"]
    if main.get("iterational"):
        message = "a mask that comes into force bit by bit is not done; it does at once"
        plan.warn(source, "unused-option", "/main/iterational", message, "write false")
    path = main.get("fixed_mask_path", "")
    if path:
        plan.load(source, {"/main/fixed_mask_path": path})
    if main.get("mask_mode", "train_mask") != "train_mask":
        if not path:
            hint = 'add "fixed_mask_path", or write "mask_mode": "train_mask"'
            plan.error(source, "missing-key", "/main", "the mask is fixed, and fixed_mask_path names no file", hint)
        plan.finetune(source, "/main")
        return
    units = _units(plan, source, main.get("training_mask"), "/main/training_mask")
    target, place = _target(plan, source, units)
    if units and target:
        name = next(iter(target))
        scope = {} if name == "sparsity" else {"budget": "per-layer"}
        plan.learn(source, "/main", {"unit": units, "target": target, **scope}, "", **{f"target__{name}": place})


def _mode(options: dict[str, Any]) -> tuple[bool, str, str]:
    """Whether the mask is learned, its file, and the key that names it; by whichever keys are there."""
    if "is_training" in options:
        return bool(options["is_training"]), options.get("mask_path", ""), "mask_path"
    if "mode" in options:
        return options["mode"] != "tuning", options.get("mask_path", ""), "mask_path"
    if "mask_mode" in options or "fixed_mask_path" in options:
        return (
            options.get("mask_mode", "train_mask") == "train_mask",
            options.get("fixed_mask_path", ""),
            "fixed_mask_path",
        )
    return True, options.get("mask_path", ""), "mask_path"


def _learn(plan: Growing, source: Source, pointer: str, entry: dict[str, Any], path: str, place: str) -> None:
    if not path:
        del entry["mask_form"]
    plan.learn(source, pointer, entry, path, target__sparsity=place, unit=f"{pointer}/training_mask")


def _units(plan: Growing, source: Source, names: Any, pointer: str) -> list[str]:
    """Our units for BMCook's, without those that this model has not."""
    if not isinstance(names, list) or not names:
        parent = pointer.rpartition("/")[0]
        plan.error(source, "missing-key", parent, '"training_mask" is missing', 'add "training_mask": ["num_heads"]')
        return []
    for index, name in enumerate(names):
        if name in NOT_HERE:
            plan.warn(source, "unused-option", f"{pointer}/{index}", *NOT_HERE[name])
    units = list(dict.fromkeys(UNIT[name] for name in names if name in UNIT))
    if not units:
        plan.error(source, "nothing-to-prune", pointer, "nothing of this can be pruned", 'write ["num_heads"]')
    return units


def _target(plan: Growing, source: Source, units: list[str]) -> tuple[dict[str, Any] | None, str]:
    """The target of a sprune.json, and where it stands; it was called training_mode, then target_mode."""
    section = next((name for name in ("target_mode", "training_mode") if isinstance(source.value.get(name), dict)), "")
    mode = source.value["main"].get("target_mode") or source.value["main"].get("training_mode") or "sparsity"
    mode = "dimension" if mode == "dimention" else mode
    value, place = source.value.get(section, {}).get(mode), f"/{section}/{mode}"
    if value is None:
        hint = f'add "target_mode": {{"{mode}": {0.67 if mode == "sparsity" else 350}}}'
        plan.error(source, "missing-key", "", f"there is no {mode} to reach", hint)
        return None, place
    if mode == "sparsity":
        return {"sparsity": value}, place
    if len(units) == 1 and units[0] in COUNTED:
        return {COUNTED[units[0]]: value}, place
    message = "a dimension counts one kind of unit"
    plan.error(source, "unit-mismatch", place, message, "have training_mask name one of num_heads, dim_head, dim_ff")
    return None, place


def _idle(plan: Growing, source: Source, options: dict[str, Any], pointer: str) -> None:
    """Options that the original had a use for, and that have none here."""
    if options.get("start_sparsity"):
        message = "gates start open, and the target goes from full size to its own: start_sparsity is not used"
        plan.warn(source, "unused-option", f"{pointer}/start_sparsity", message, key=True)
    if options.get("hard_binarize") is False:
        message = "a mask always keeps exactly its target: hard_binarize is not used"
        plan.warn(source, "unused-option", f"{pointer}/hard_binarize", message, key=True)
    if (options.get("tuning") or {}).get("iterative"):
        message = "a mask that comes into force bit by bit is not done; it does at once"
        plan.warn(source, "unused-option", f"{pointer}/tuning/iterative", message, "write false")
