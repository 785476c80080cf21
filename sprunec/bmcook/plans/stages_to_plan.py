"""One native plan from bmcook.json, its second files and the script's flags.

What a run of BMCook's files does, and what `sprunec convert` prints, are the same plan: nothing is done for one that is
not in the other. Paths in these files, and on the command line, are relative to the current directory, as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sprunec.bmcook.plans.document import config_path, plan_document, read_if_there
from sprunec.bmcook.plans.l0_units import add_block, add_structure
from sprunec.bmcook.plans.patterns import PLACEHOLDER, add_pattern, refuse_families, warn_of_unknown_names
from sprunec.bmcook.plans.plan_builder import BmcookSection, PlanBuilder
from sprunec.bmcook.plans.stages import add_stage
from sprunec.errors import Diagnostic, InputError, show
from sprunec.families.base_config import removable
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.plan.bmcook_flags import L0_SECTIONS, NATIVE, NO_FLAGS, Flags, kind_of, option
from sprunec.plan.json_reader import escape
from sprunec.plan.schema import properties
from sprunec.plan.schema_errors import nearest, schema_findings
from sprunec.plan.source import Section, Source, has_errors, read_source
from sprunec.plan.written_plan import as_list

UNCHOSEN = "m4n2_1d/m4n2_2d/sprune"  # as the template has it
PATTERNS = ("m4n2_1d", "m4n2_2d")
ASSUMED = ("model_config", "load", "data_bin_path")
NOT_DONE = (("quantization", "is_quant", "quantize"), ("MoEfication", "is_moefy", "MoEfy"))
BESIDE = {"l0_pruning": "l0_pruning.json", "sprune": "sprune.json"}


def convert(bmcook: Source, seconds: Sequence[str | Path] = (), flags: Flags = NO_FLAGS) -> Source:
    """Make the plan, whose `problems` are all that was found; with an error among them it is not to be used."""
    plan = PlanBuilder(flags)
    whole, pruning, document = plan.section(bmcook), plan.section(bmcook, "/pruning"), dict[str, Any]()
    method = str(pruning.written.get("mask_method", UNCHOSEN)) if pruning.written.get("is_pruning") else ""
    found = _findings(bmcook, "bmcook")
    plan.found += found if method == "sprune" else _demoted(found, "/pruning/sprune")
    for section, key, what in NOT_DONE:
        if plan.section(bmcook, f"/{section}").written.get(key) is True:
            message = f"{key} is true, and this tool does not {what}"
            whole.error("not-done", f"{section}/{key}", message, "write false", at_key=True)
    refuse_families(whole)
    if not has_errors(plan.found):
        path = config_path(bmcook, flags)
        config, half = read_if_there(path)
        _add_passes(pruning, method, [*seconds] or ([flags.sprune_config] if flags.sprune_config else []), config)
        document = plan_document(plan, bmcook, path, half, prunes=bool(method))
        if config is not None:
            _tell_shares(plan, config)
    _tell_flags(plan, bmcook, document)
    given = {"/outputs/checkpoint": (Source("--save-name", None), "")} if flags.save_name is not None else {}
    return Source(
        bmcook.file,
        document,
        problems=(*bmcook.problems, *plan.found),
        origins={"": (bmcook, ""), **plan.origins, **flags.origins(), **given},
        assumed=frozenset(NATIVE[name] for name in ASSUMED if name not in flags.given()),
    )


def _findings(source: Source, schema: str) -> list[Diagnostic]:
    """Tell what the schema says, and the keys that it doesn't name, which the original ignored in silence."""
    return [*schema_findings(source, schema), *_strangers(source, properties(schema), "", source.value)]


def _strangers(source: Source, known: dict[str, Any], pointer: str, value: dict[str, Any]) -> Iterator[Diagnostic]:
    for key, inner in value.items():
        place = f"{pointer}/{escape(key)}"
        if key not in known:
            near = nearest(key, known)
            hint = f"did you mean {show(near)}?" if near else "it is ignored"
            yield source.find("unknown-key", place, f"unknown key {show(key)}", hint, severity="warning", key=True)
        elif isinstance(inner, dict) and "properties" in known[key]:
            yield from _strangers(source, properties(known[key]), place, inner)


def _demoted(found: list[Diagnostic], pointer: str) -> list[Diagnostic]:
    """Make warnings of what is wrong in a part that isn't used."""
    return [
        replace(each, severity="warning", hint="it is not used")
        if each.severity == "error" and f"{each.pointer}/".startswith(f"{pointer}/")
        else each
        for each in found
    ]


def _add_passes(pruning: BmcookSection, method: str, seconds: Sequence[str | Path], config: ModelConfig | None) -> None:
    plan = pruning.plan
    bmcook = plan.section(pruning.source)
    if method in ("", *L0_SECTIONS, "structure", "sprune"):
        # pruned_module counts for 2:4 masks alone; what the original would have missed is told all the same
        names = pruning.written.get("pruned_module", [])
        if method and any(name != PLACEHOLDER for name in names):
            pruning.unused("pruned_module", f"pruned_module is for m4n2_1d and m4n2_2d; {method} does not use it", "")
        if config is not None and names:
            warn_of_unknown_names(pruning, config)
    if not method:
        if plan.steps:
            bmcook.add({"pass": "train", "steps": plan.steps})
    elif method == UNCHOSEN:
        hint = "choose one of coarse-grained, fine-grained, structure, sprune, m4n2_1d and m4n2_2d"
        pruning.error("choice", "mask_method", "is_pruning is true, and mask_method is a choice", hint)
    elif method in PATTERNS:
        add_pattern(pruning, method, config)
    elif method == "sprune":
        add_block(plan, bmcook.source)
    else:
        _add_files(plan, Path(bmcook.source.file), method, seconds, config)
    bmcook.add({"pass": "emit", "formats": ["sprunec"]})


def _add_files(
    plan: PlanBuilder, bmcook: Path, method: str, seconds: Sequence[str | Path], config: ModelConfig | None
) -> None:
    """Add one stage after another, or the one sprune.json."""
    wanted, alone = "sprune" if method == "structure" else "l0_pruning", len(seconds) < 2
    for path in seconds or [bmcook.parent / BESIDE[wanted]]:
        try:
            source = _read_second(path, wanted)
        except InputError as error:
            hint = f"put it beside {bmcook.name}, or name it with --sprune-config"
            told = error.diagnostics
            plan.found += [replace(each, hint=hint) if each.code == "missing-file" else each for each in told]
            continue
        found = [*source.problems, *_findings(source, wanted)]
        if alone and method in L0_SECTIONS:
            (other,) = {*L0_SECTIONS} - {method}
            found = _demoted(found, f"/{other}")
        plan.found += found
        if has_errors(found):
            continue
        if wanted == "sprune":
            add_structure(plan, source)
        else:
            add_stage(plan, source, method, config, alone=alone)


def _read_second(path: str | Path, wanted: str) -> Source:
    """Read one l0_pruning.json or sprune.json; raise InputError where it is not the one that is `wanted`."""
    name, hint = BESIDE[wanted], f"give the {BESIDE[wanted]} with --sprune-config"
    source = read_source(path, name, hint)
    if kind_of(source.value) != wanted:
        message = f"this is no {name}: it has neither of its sections"
        raise InputError(source.find("foreign-file", "", message, hint))
    return source


def _tell_flags(plan: PlanBuilder, bmcook: Source, document: dict[str, Any]) -> None:
    """Tell of paths that nobody gave, and of flags that do nothing."""
    for name in ASSUMED:
        _, section, key = NATIVE[name].split("/")
        path = document.get(section, {}).get(key)
        if path is not None and name not in plan.flags.given():
            message = f"{option(name)} is not given: {path} is taken"
            hint = "give the flag, or edit the plan"
            plan.found.append(Diagnostic("assumed-path", message, hint, "warning", bmcook.file))
    plan.found += [Diagnostic("unused-flag", message, severity="warning") for message in plan.flags.idle()]


def _tell_shares(plan: PlanBuilder, config: ModelConfig) -> None:
    """BMCook's guide reads as if target_sparsity were the share kept; it is the share removed."""
    for index, entry in enumerate(plan.passes):
        sparsity = entry.get("target", {}).get("sparsity")
        if isinstance(sparsity, int | float) and 0 < sparsity < 1:
            whole = removable(config, as_list(entry["unit"]))
            gone = round(sparsity * whole)
            message = (
                f"{sparsity} is the share removed: of {whole:,} parameters {gone:,} go ({sparsity:.1%}) and "
                f"{whole - gone:,} stay ({1 - sparsity:.1%})"
            )
            source, pointer = plan.origins[f"/passes/{index}/target/sparsity"]
            hint = f"to keep {sparsity:.0%}, write {round(1 - sparsity, 6)}" if sparsity != 0.5 else ""
            Section(source, plan.found).warn("share-removed", pointer, message, hint)
