"""One native plan from bmcook.json, its second files and the script's flags.

What a run of BMCook's files does, and what `sprunec convert` prints, are the same plan: nothing is done for one that is
not in the other. Paths in these files, and on the command line, are relative to the current directory, as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sprunec.bmcook.plans.config_files import BESIDE, demote, findings, read_second
from sprunec.bmcook.plans.document import config_path, plan_document, read_if_there
from sprunec.bmcook.plans.l0_units import add_block, add_structure
from sprunec.bmcook.plans.patterns import PLACEHOLDER, add_pattern, refuse_families, warn_of_unknown_names
from sprunec.bmcook.plans.plan_builder import PlanBuilder, Section
from sprunec.bmcook.plans.stages import add_stage
from sprunec.errors import Diagnostic, InputError
from sprunec.families.base_config import removable
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.plan.bmcook_flags import NATIVE, NO_FLAGS, Flags, option
from sprunec.plan.source import Source

DENSE = "m4n2_1d/m4n2_2d/sprune"
STAGED = ("coarse-grained", "fine-grained")
PATTERNS = ("m4n2_1d", "m4n2_2d")
ASSUMED = ("model_config", "load", "data_bin_path")
NOT_DONE = (("quantization", "is_quant", "quantize"), ("MoEfication", "is_moefy", "MoEfy"))


def convert(bmcook: Source, seconds: Sequence[str | Path] = (), flags: Flags = NO_FLAGS) -> Source:
    """Make the plan, whose `problems` are all that was found; with an error among them it is not to be used."""
    plan = PlanBuilder(flags)
    whole = Section(plan, bmcook, "", bmcook.value)
    pruning, document = bmcook.value.get("pruning"), dict[str, Any]()
    prunes = isinstance(pruning, dict) and bool(pruning.get("is_pruning"))
    method = str(pruning.get("mask_method", DENSE)) if prunes else ""
    _check_sections(whole, method)
    refuse_families(whole)
    if not _failed(plan.found):
        path = config_path(bmcook, flags)
        config, half = read_if_there(path)
        _add_passes(whole, method, [*seconds] or ([flags.sprune_config] if flags.sprune_config else []), config)
        document = plan_document(plan, bmcook, path, half, prunes=bool(method))
        if config is not None:
            _tell_shares(plan, config)
    _tell_flags(plan, bmcook, document)
    given = {pointer: (Source(option(name), None), "") for name, pointer in NATIVE.items() if name in flags.given()}
    if flags.save_name is not None:
        given["/outputs/checkpoint"] = (Source("--save-name", None), "")
    return Source(
        bmcook.file,
        document,
        problems=(*bmcook.problems, *plan.found),
        origins={"": (bmcook, ""), **plan.origins, **given},
        assumed=frozenset(NATIVE[name] for name in ASSUMED if name not in flags.given()),
    )


def _check_sections(bmcook: Section, method: str) -> None:
    """Tell what is wrong in bmcook.json itself; parts that its mask_method has no use for count as warnings."""
    found = findings(bmcook.source, "bmcook")
    bmcook.plan.found += found if method == "sprune" else demote(found, "/pruning/sprune")
    for section, key, what in NOT_DONE:
        part = bmcook.options.get(section)
        if isinstance(part, dict) and part.get(key) is True:
            message = f"{key} is true, and this tool does not {what}"
            bmcook.error("not-done", f"{section}/{key}", message, "write false", at_key=True)


def _add_passes(bmcook: Section, method: str, seconds: Sequence[str | Path], config: ModelConfig | None) -> None:
    plan, value = bmcook.plan, bmcook.options.get("pruning")
    pruning = Section(plan, bmcook.source, "/pruning", value if isinstance(value, dict) else {})
    if method in ("", *STAGED, "structure", "sprune"):
        # pruned_module counts for 2:4 masks alone; what the original would have missed is told all the same
        names = pruning.options.get("pruned_module", [])
        if method and any(name != PLACEHOLDER for name in names):
            message = f"pruned_module is for m4n2_1d and m4n2_2d; {method} does not use it"
            pruning.warn("unused-option", "pruned_module", message, at_key=True)
        if config is not None and names:
            warn_of_unknown_names(pruning, config)
    if not method:
        if plan.steps:
            bmcook.add({"pass": "train", "steps": plan.steps})
    elif method == DENSE:
        hint = "choose one of coarse-grained, fine-grained, structure, sprune, m4n2_1d and m4n2_2d"
        pruning.error("choice", "mask_method", "is_pruning is true, and mask_method is a choice", hint)
    elif method in PATTERNS:
        add_pattern(pruning, method, config)
    elif method == "sprune":
        add_block(plan, bmcook.source)
    else:
        _add_files(bmcook, method, seconds, config)
    bmcook.add({"pass": "emit", "formats": ["sprunec"]})


def _add_files(bmcook: Section, method: str, seconds: Sequence[str | Path], config: ModelConfig | None) -> None:
    """Add one stage after another, or the one sprune.json."""
    plan, file = bmcook.plan, Path(bmcook.source.file)
    wanted = "sprune" if method == "structure" else "l0_pruning"
    for path in seconds or [str(file.parent / BESIDE[wanted])]:
        try:
            source, found = read_second(path, wanted)
        except InputError as error:
            hint = f"put it beside {file.name}, or name it with --sprune-config"
            told = error.diagnostics
            plan.found += [replace(each, hint=hint) if each.code == "missing-file" else each for each in told]
            continue
        alone = len(seconds) < 2
        if alone and method in STAGED:
            (other,) = {*STAGED} - {method}
            found = demote(found, f"/{other}")
        plan.found += found
        if _failed(found):
            continue
        if wanted == "sprune":
            add_structure(plan, source)
        else:
            add_stage(plan, source, method, config, alone=alone)


def _tell_flags(plan: PlanBuilder, bmcook: Source, document: dict[str, Any]) -> None:
    """Tell of paths that nobody gave, and of flags that do nothing."""
    for name in ASSUMED:
        _, section, key = NATIVE[name].split("/")
        path = document.get(section, {}).get(key)
        if path is not None and name not in plan.flags.given():
            message = f"{option(name)} is not given: {path} is taken"
            hint = "give the flag, or edit the plan"
            plan.found.append(Source(bmcook.file, None).warn("assumed-path", "", message, hint))
    for message in plan.flags.idle():
        plan.found.append(Source("", None).warn("unused-flag", "", message))


def _tell_shares(plan: PlanBuilder, config: ModelConfig) -> None:
    """BMCook's guide reads as if target_sparsity were the share kept; it is the share removed."""
    for index, entry in enumerate(plan.passes):
        sparsity = entry.get("target", {}).get("sparsity")
        if isinstance(sparsity, int | float) and 0 < sparsity < 1:
            whole = removable(config, entry["unit"] if isinstance(entry["unit"], list) else [entry["unit"]])
            gone = round(sparsity * whole)
            message = (
                f"{sparsity} is the share removed: of {whole:,} parameters {gone:,} go ({sparsity:.1%}) and "
                f"{whole - gone:,} stay ({1 - sparsity:.1%})"
            )
            source, pointer = plan.origins[f"/passes/{index}/target/sparsity"]
            hint = f"to keep {sparsity:.0%}, write {round(1 - sparsity, 6)}" if sparsity != 0.5 else ""
            plan.found.append(source.warn("share-removed", pointer, message, hint))


def _failed(found: Sequence[Diagnostic]) -> bool:
    return any(each.severity == "error" for each in found)
