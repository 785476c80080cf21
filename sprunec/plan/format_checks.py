"""What the forms to emit ask of a plan: the same heads and widths in all layers for CPM-Live, a package for others.

All of it is told before any work: training that ends in a model which the form cannot hold would be in vain.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from sprunec.errors import Diagnostic
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.uniform import HEAD_APART, bias_columns, unevenness
from sprunec.plan.pointer import show
from sprunec.plan.resolve import MASKS, Draft, Step
from sprunec.units import INSIDE, SIZE_TARGETS

EVEN_FORM = "cpm-live"
FOLDED = (EVEN_FORM, "huggingface")
PACKAGES = {"huggingface": ("transformers", "sprunec[hf]")}
OTHER_FORMS = 'emit "sprunec" or "huggingface" instead of "cpm-live"'


def heads_tied(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """`tie_heads` stands where heads are counted, and all layers have the same ones left."""
    alike = config is None or len(bias_columns(config)) < 2
    for step in draft.steps:
        options = step.options or {}
        heads = "head" in options.get("unit", ())
        if options.get("tie_heads"):
            yield from _tie(draft, step, options, heads, alike)
        alike = alike and (not heads or bool(options["tie_heads"]))


def _tie(draft: Draft, step: Step, options: Any, heads: bool, alike: bool) -> Iterator[Diagnostic]:
    pointer, size = f"{step.pointer}/tie_heads", [key for key in SIZE_TARGETS if key in options["target"]]
    if not heads:
        units = " and ".join(show(unit) for unit in options["unit"])
        message = f"tie_heads is about heads, and the pass cuts {units}"
        yield draft.source.find("tie-mismatch", pointer, message, 'remove it, or choose unit "head"')
    elif size:
        message = f"tied heads are counted, and {size[0]} leaves their number open"
        yield draft.source.find("tie-mismatch", f"{step.pointer}/target", message, "give num_heads")
    elif not alike:
        message = "the layers don't have the same heads left to be tied"
        hint = "tie them in the first pass that cuts heads, or remove it"
        yield draft.source.find("tie-mismatch", pointer, message, hint)


def form_fits(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """Every pass leaves all layers the same, where CPM-Live's one config must say what they have."""
    emits = [step for step in draft.steps if step.name == "emit" and step.options is not None]
    formats = {form for step in emits for form in (step.options or {})["formats"]}
    if EVEN_FORM in formats:
        if config is not None and not config.tie_word_embeddings:
            message = f"the form cpm-live can't hold this model: {HEAD_APART}"
            yield draft.source.find("head-apart", "/model/config", message, OTHER_FORMS)
        if config is not None and unevenness(config):
            message = f"the form cpm-live can't hold this model: {unevenness(config)[0]}"
            yield draft.source.find("uneven-layers", "/model/config", message, f"even it, or {OTHER_FORMS}")
        for step in (each for each in draft.steps if each.name in MASKS and each.options is not None):
            yield from _even(draft, step, step.options or {})
    for step in emits:
        if "dtype" in step.given and not formats & set(FOLDED):
            message = "dtype is not used without a form that folds factors into its weights"
            pointer = f"{step.pointer}/dtype"
            yield draft.source.warn("unused-option", pointer, message, "remove it", key=True)


def _even(draft: Draft, step: Step, options: Any) -> Iterator[Diagnostic]:
    size = [key for key in SIZE_TARGETS if key in options["target"]]
    inside = [unit for unit in options["unit"] if unit in INSIDE]
    if not inside:
        return
    message, hint = "", ""
    if size:
        message = f"{size[0]} lets layers keep unlike numbers of {show(inside[0])} units"
        hint = f"give counts, or {OTHER_FORMS}"
    elif "head" in inside and not options["tie_heads"]:
        message = "each layer keeps heads of its own"
        hint = f'add "tie_heads": true, or {OTHER_FORMS}'
    elif options["budget"] == "global" and inside != ["head"]:
        message = f'"global" lets layers keep unlike numbers of {show(next(u for u in inside if u != "head"))} units'
        hint = f'write "budget": "per-layer", or {OTHER_FORMS}'
    if message:
        message = f"{message}, and the form cpm-live has one width for all"
        yield draft.source.find("uneven-layers", step.pointer, message, hint)


def package_findings(draft: Draft, strict: bool) -> Iterator[Diagnostic]:
    """Packages that a form needs; a missing one is a warning unless `strict`."""
    for step in (each for each in draft.steps if each.name == "emit" and each.options is not None):
        for form in (step.options or {})["formats"]:
            package, extra = PACKAGES.get(form, ("", ""))
            if package and find_spec(package) is None:
                message = f"the form {form} needs the package {package}, which is not installed"
                hint = f"pip install '{extra}'"
                finding = draft.source.find("missing-package", f"{step.pointer}/formats", message, hint)
                yield finding if strict else replace(finding, severity="warning")
