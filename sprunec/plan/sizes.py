"""Follow the model's size through the passes, and tell targets that it cannot reach."""

from __future__ import annotations

from collections.abc import Iterator

from sprunec.errors import Diagnostic
from sprunec.model.config import ModelConfig
from sprunec.plan.draft import MASKS, Draft, Step
from sprunec.plan.multiples import multiples_fit
from sprunec.plan.targets import Left, mismatched
from sprunec.plan.text import show

_WORDS = {
    "num_layers": "layers",
    "num_attention": "attention sublayers",
    "num_feed_forward": "feed-forward sublayers",
    "num_heads": "heads per layer",
    "dim_head": "dims per head",
    "dim_ff": "feed-forward dims per layer",
}


def size_findings(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    if config is None:
        return
    left, cut = Left.of(config), False
    for step in draft.steps:
        if step.name in MASKS and step.options is not None:
            found = list(_targets(draft, step, left, cut))
            found += list(_gates(draft, step, left, cut)) if "gates_for" in step.options else []
            found += multiples_fit(draft, step, left.counts)
            yield from found
            left = _after(step, left, [finding.pointer for finding in found])
            cut = True
        elif step.name in ("", "load-mask", *MASKS):
            left, cut = left.unknown(), True


def _gates(draft: Draft, step: Step, left: Left, cut: bool) -> Iterator[Diagnostic]:
    """What the gates learn is measured as what is cut."""
    options = step.options or {}
    if options["gates_for"].keys() == options["target"].keys():
        yield from _targets(draft, step, left, cut, "gates_for")
        return
    names = " and ".join(options["target"])
    message = f"gates_for gives {' and '.join(options['gates_for'])}, the target {names}"
    yield draft.source.find("unlike-targets", f"{step.pointer}/gates_for", message, f"give {names} in both", key=True)


def _targets(draft: Draft, step: Step, left: Left, cut: bool, where: str = "target") -> Iterator[Diagnostic]:
    options = step.options or {}
    if "parameters" in options[where]:
        yield from _parameters(draft, step, left, cut, where)
    strangers = mismatched(options["unit"], options[where])
    for key, wanted in options[where].items():
        if key not in _WORDS or key in strangers:
            continue
        pointer, most = f"{step.pointer}/{where}/{key}", left.most(key, options["budget"])
        if wanted > most:
            message = f"{wanted} is above {most}, the {_WORDS[key]} that {_whose(cut)}"
            hint = f"give less than {most}" if most > 1 else f"take {key} out"
            yield draft.source.find("target-too-large", pointer, message, hint)
        elif wanted == most:
            message = f"{wanted} is the number of {_WORDS[key]} that {_whose(cut)}: nothing would be cut"
            yield draft.source.warn("nothing-to-cut", pointer, message, "give less, or remove the pass")


def _parameters(draft: Draft, step: Step, left: Left, cut: bool, where: str) -> Iterator[Diagnostic]:
    options = step.options or {}
    wanted, least = options[where]["parameters"], left.least_parameters(options["unit"])
    pointer = f"{step.pointer}/{where}/parameters"
    hint = f"give more than {least:,} and less than {left.parameters:,}"
    written = show(step.given[where]["parameters"])
    if wanted > left.parameters:
        message = f"{written} is above the {left.parameters:,} parameters that {_whose(cut)}"
        yield draft.source.find("target-too-large", pointer, message, hint)
    elif wanted < least:
        units = " and ".join(show(unit) for unit in options["unit"])
        message = f"{written} is below the {least:,} parameters that stay when every unit {units} is cut"
        yield draft.source.find("target-too-small", pointer, message, hint)
    elif wanted == left.parameters and left.layers is not None:
        message = f"{written} is the number of parameters that {_whose(cut)}: nothing would be cut"
        yield draft.source.warn("nothing-to-cut", pointer, message, "give less, or remove the pass")


def _after(step: Step, left: Left, wrong: list[str]) -> Left:
    """What is left when the pass has done what it can; a wrong target is taken for none."""
    options = step.options or {}
    strangers = mismatched(options["unit"], options["target"])
    target = {
        key: value
        for key, value in options["target"].items()
        if key not in strangers and f"{step.pointer}/target/{key}" not in wrong
    }
    return left.after(target, options["budget"])


def _whose(cut: bool) -> str:
    return "are left at this point" if cut else "the model has"
