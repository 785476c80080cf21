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
from sprunec.bmcook.plans.document import config_path, look_at, plan_document
from sprunec.bmcook.plans.flags import NATIVE, NO_FLAGS, Flags, option
from sprunec.bmcook.plans.l0_units import add_block, add_structure
from sprunec.bmcook.plans.patterns import PLACEHOLDER, add_pattern, refuse_families, warn_of_strangers
from sprunec.bmcook.plans.plan_builder import Growing
from sprunec.bmcook.plans.stages import add_stage
from sprunec.errors import Diagnostic, InputError
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.sizes import removable
from sprunec.plan.source import Source

DENSE = "m4n2_1d/m4n2_2d/sprune"
STAGED = ("coarse-grained", "fine-grained")
PATTERNS = ("m4n2_1d", "m4n2_2d")
ASSUMED = ("model_config", "load", "data_bin_path")


def convert(bmcook: Source, seconds: Sequence[str | Path] = (), flags: Flags = NO_FLAGS) -> Source:
    """The plan, whose `problems` are all that was found on the way; with an error among them it is not to be used."""
    plan = Growing(flags)
    plan.found += _sections(bmcook)
    refuse_families(plan, bmcook)
    if not _failed(plan.found):
        path = config_path(bmcook, flags)
        config, half = look_at(path)
        _add_passes(plan, bmcook, [*seconds] or ([flags.sprune_config] if flags.sprune_config else []), config)
        document = plan_document(plan, bmcook, path, half, prunes=bool(_method(bmcook)))
        if config is not None:
            _tell_shares(plan, config)
    else:
        document = {}
    _tell_flags(plan, bmcook, document)
    given = {pointer: (Source(option(name), None), "") for name, pointer in NATIVE.items() if name in flags.given()}
    return Source(
        bmcook.file,
        document,
        problems=(*bmcook.problems, *plan.found),
        origins={"": (bmcook, ""), **plan.origins, **given, **_output_origin(flags)},
        assumed=frozenset(NATIVE[name] for name in ASSUMED if name not in flags.given()),
    )


def _output_origin(flags: Flags) -> dict[str, tuple[Source, str]]:
    return {"/outputs/checkpoint": (Source("--save-name", None), "")} if flags.save_name is not None else {}


def _sections(bmcook: Source) -> list[Diagnostic]:
    """What is wrong in bmcook.json itself; parts that its mask_method has no use for count as warnings."""
    found = findings(bmcook, "bmcook")
    if _method(bmcook) != "sprune":
        found = demote(found, "/pruning/sprune")
    for section, key, what in (("quantization", "is_quant", "quantize"), ("MoEfication", "is_moefy", "MoEfy")):
        part = bmcook.value.get(section)
        if isinstance(part, dict) and part.get(key) is True:
            message = f"{key} is true, and this tool does not {what}"
            found.append(bmcook.find("not-done", f"/{section}/{key}", message, "write false", key=True))
    return found


def _method(bmcook: Source) -> str:
    """Empty while nothing is pruned."""
    pruning = bmcook.value.get("pruning")
    if not isinstance(pruning, dict) or not pruning.get("is_pruning"):
        return ""
    return str(pruning.get("mask_method", DENSE))


def _add_passes(plan: Growing, bmcook: Source, seconds: Sequence[str | Path], config: ModelConfig | None) -> None:
    method = _method(bmcook)
    if method in ("", *STAGED, "structure", "sprune"):
        _idle_patterns(plan, bmcook, method, config)
    if not method:
        if plan.steps:
            plan.add({"pass": "train", "steps": plan.steps}, bmcook, "")
    elif method == DENSE:
        hint = "choose one of coarse-grained, fine-grained, structure, sprune, m4n2_1d and m4n2_2d"
        plan.error(bmcook, "choice", "/pruning/mask_method", "is_pruning is true, and mask_method is a choice", hint)
    elif method in PATTERNS:
        add_pattern(plan, bmcook, method, config)
    elif method == "sprune":
        add_block(plan, bmcook, "/pruning/sprune")
    else:
        _add_files(plan, bmcook, method, seconds, config)
    plan.add({"pass": "emit", "formats": ["sprunec"]}, bmcook, "")


def _add_files(
    plan: Growing, bmcook: Source, method: str, seconds: Sequence[str | Path], config: ModelConfig | None
) -> None:
    """One stage after another, or the one sprune.json."""
    wanted = "sprune" if method == "structure" else "l0_pruning"
    beside = str(Path(bmcook.file).parent / BESIDE[wanted])
    for path in seconds or [beside]:
        try:
            source, found = read_second(path, wanted)
        except InputError as error:
            hint = f"put it beside {Path(bmcook.file).name}, or name it with --sprune-config"
            plan.found += [
                replace(each, hint=hint) if each.code == "missing-file" else each for each in error.diagnostics
            ]
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


def _idle_patterns(plan: Growing, bmcook: Source, method: str, config: ModelConfig | None) -> None:
    """pruned_module counts for 2:4 masks alone; what the original would have missed is told all the same."""
    pruning = bmcook.value.get("pruning")
    names = pruning.get("pruned_module", []) if isinstance(pruning, dict) else []
    if method and any(name != PLACEHOLDER for name in names):
        message = f"pruned_module is for m4n2_1d and m4n2_2d; {method} does not use it"
        plan.warn(bmcook, "unused-option", "/pruning/pruned_module", message, key=True)
    if config is not None and names:
        warn_of_strangers(plan, bmcook, config)


def _tell_flags(plan: Growing, bmcook: Source, document: dict[str, Any]) -> None:
    """Paths that nobody gave, and flags that do nothing."""
    for name in ASSUMED:
        _, section, key = NATIVE[name].split("/")
        path = document.get(section, {}).get(key)
        if path is not None and name not in plan.flags.given():
            message = f"{option(name)} is not given: {path} is taken"
            plan.warn(Source(bmcook.file, None), "assumed-path", "", message, "give the flag, or edit the plan")
    for words in plan.flags.idle():
        plan.warn(Source("", None), "unused-flag", "", words)


def _tell_shares(plan: Growing, config: ModelConfig) -> None:
    """BMCook's guide reads as if target_sparsity were the share kept; it is the share removed."""
    for index, entry in enumerate(plan.passes):
        sparsity = entry.get("target", {}).get("sparsity")
        if isinstance(sparsity, int | float) and 0 < sparsity < 1:
            units = entry["unit"] if isinstance(entry["unit"], list) else [entry["unit"]]
            whole = removable(config, units)
            gone = round(sparsity * whole)
            message = (
                f"{sparsity} is the share removed: of {whole:,} parameters {gone:,} go ({sparsity:.1%}) and "
                f"{whole - gone:,} stay ({1 - sparsity:.1%})"
            )
            source, pointer = plan.origins[f"/passes/{index}/target/sparsity"]
            hint = f"to keep {sparsity:.0%}, write {round(1 - sparsity, 6)}" if sparsity != 0.5 else ""
            plan.warn(source, "share-removed", pointer, message, hint)


def _failed(found: Sequence[Diagnostic]) -> bool:
    return any(each.severity == "error" for each in found)
