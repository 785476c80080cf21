"""mask_method m4n2_1d and m4n2_2d: two of every four weights stay, and `pruned_module` says in which tensors."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sprunec.bmcook.plans.plan_builder import BmcookSection, age
from sprunec.checkpoint.provenance import made_by_same
from sprunec.errors import show
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.detect import TODAY, module_family
from sprunec.plan.targets import quoted

PLACEHOLDER = "[placehold]"
MODULES = (("pruning", "pruned_module"), ("distillation", "mse_hidn_module"), ("MoEfication", "first_FFN_module"))
_POINT = re.compile(r"^\[(pre|post)\]")


def add_pattern(pruning: BmcookSection, method: str, config: ModelConfig | None) -> None:
    """Apply the mask file if it is there, else write it, as the original did.

    One that a run from the same checkpoint has chosen itself is this plan's own output: the same command goes on.
    """
    names = [name for name in pruning.written.get("pruned_module", []) if name != PLACEHOLDER]
    if not names:
        hint = 'name them, e.g. ["ffn.ffn.w_out.weight"]'
        pruning.error("missing-key", "", f"pruned_module names no tensors for {method}", hint)
        return
    if config is not None:
        warn_of_unknown_names(pruning, config)
    entry: dict[str, Any] = {"pass": "sparsify", "pattern": method, "tensors": names}
    path = pruning.written.get("pruning_mask_path") or ""
    own = bool(path) and made_by_same(Path(path), method, names, Path(pruning.plan.flags.of("load")))
    if path and os.path.isfile(path) and not own:
        entry["path"] = path
        message = f"{path}, made {age(path)}, is applied instead of choosing a mask"
        pruning.warn("mask-found", "pruning_mask_path", message, "remove the file to choose anew")
    elif path:
        entry["save_mask"] = path
    pruning.add(entry, origins={"tensors": "pruned_module", "path": "pruning_mask_path"})
    pruning.finetune()


def refuse_families(bmcook: BmcookSection) -> None:
    """Refuse modules of another family, wherever the file names any: it is a plan for that one."""
    for section, key in MODULES:
        names = bmcook.plan.section(bmcook.source, f"/{section}").written.get(key)
        for index, name in enumerate(names if isinstance(names, list) else ()):
            sides = [_POINT.sub("", side) for side in str(name).split(":")]
            if found := next(((side, family) for side in sides if (family := module_family(side))), None):
                message = f"{show(found[0])} is a module of {found[1]}"
                bmcook.error("foreign-plan", f"{section}/{key}/{index}", message, TODAY)


def warn_of_unknown_names(pruning: BmcookSection, config: ModelConfig) -> None:
    """Warn of parts that are in no tensor's name: the original left those tensors dense in silence."""
    known = list(config.tensors())
    for index, part in enumerate(pruning.written.get("pruned_module", [])):
        key = f"pruned_module/{index}"
        if part == PLACEHOLDER:
            pruning.warn("placeholder", key, f"{show(part)} names nothing", "name tensors, or remove it")
        elif not any(part in name for name in known):
            near = _near(part, known)
            hint = f"did you mean {quoted(near)}?" if near else "name other tensors"
            pruning.warn("matches-nothing", key, f"{show(part)} is in no tensor's name", hint)


def _near(part: str, known: list[str]) -> list[str]:
    """Guess what was meant by a name with one step left out, such as w_in.w for w_in.w_0 and w_in.w_1."""
    middle = r"\.".join(f"{re.escape(step)}(?:_[^.]*)?" for step in part.split("."))
    pattern = re.compile(rf"(?:^|\.)(?=({middle})(?:\.|$))")
    return list(dict.fromkeys(run for name in known for run in pattern.findall(name)))
