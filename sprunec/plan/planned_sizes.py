"""Follow the model's size through the passes, and tell targets that it cannot reach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sprunec.errors import Diagnostic
from sprunec.families.cpm_ant.config import LayerShape, ModelConfig
from sprunec.plan.multiples import multiples_fit
from sprunec.plan.pointer import show
from sprunec.plan.resolve import Draft, Step
from sprunec.plan.shortfalls import short_layers, short_words
from sprunec.plan.targets import FIELDS, Left, mismatched, most_kept

_WORDS = {
    "num_layers": "layers",
    "num_attention": "attention sublayers",
    "num_feed_forward": "feed-forward sublayers",
    "num_heads": "heads per layer",
    "dim_head": "dims per head",
    "dim_ff": "feed-forward dims per layer",
}

# Targets that some layers cannot keep: the pass cuts the others all the same.
_SHORT = ("short-layers", "short-of-multiples")


def size_findings(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    if config is None:
        return
    left, cut, known = Left.of(config), False, config.layers
    for step in draft.steps:
        if step.declared.by_target and step.options is not None:
            found = list(_targets(draft, step, left, cut))
            found += list(_gates(draft, step, left, cut)) if "gates_for" in step.options else []
            found += multiples_fit(draft, step, left.counts)
            found += [] if any(each.severity == "error" for each in found) else _short(draft, step, left, known)
            yield from found
            left = _after(step, left, [finding.pointer for finding in found if finding.code not in _SHORT])
            cut = True
        elif not step.name or step.declared.removes == "units":
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
            continue
        multiple = (options.get("multiple_of") or {}).get(key, 1) if where == "target" else 1
        if wanted == most and not _trims(left, key, multiple):
            message = f"{wanted} is the number of {_WORDS[key]} that {_whose(cut)}: nothing would be cut"
            yield draft.source.warn("nothing-to-cut", pointer, message, "give less, or remove the pass")


def _trims(left: Left, key: str, multiple: int) -> bool:
    """Whether layers lose something only because what they keep is to be a multiple."""
    if key not in FIELDS or left.layers is None:
        return False
    return any(getattr(layer, FIELDS[key]) % multiple for layer in left.layers)


def _short(draft: Draft, step: Step, left: Left, given: Sequence[LayerShape]) -> Iterator[Diagnostic]:
    """Counts that not every layer, or not all of them together, can keep; `given` are the model's as it comes."""
    options = step.options or {}
    strangers = mismatched(options["unit"], options["target"])
    for key, wanted in options["target"].items():
        if left.layers is None or key not in FIELDS or key in strangers:
            continue
        pointer, multiple = f"{step.pointer}/target/{key}", (options.get("multiple_of") or {}).get(key, 1)
        if options["budget"] == "global":
            yield from _short_together(draft, left.layers, options["target"], key, multiple, pointer)
            continue
        short = short_layers(left.layers, key, wanted, multiple)
        gone = short_layers(given, key, wanted)  # what earlier passes took away needs no word
        short = {index: most for index, most in short.items() if most is not None or gone.get(index, 0) is None}
        if short:
            least = min((most for most in short.values() if most is not None), default=None)
            less = f"at most {least}" if least else "a smaller multiple"
            hint = f'give {less}, or "budget": "global" for a mean' if least is not None else "they stay without"
            yield draft.source.warn("short-layers", pointer, short_words(key, wanted, short), hint)


def _short_together(
    draft: Draft, layers: Sequence[LayerShape], target: Mapping[str, Any], key: str, multiple: int, pointer: str
) -> Iterator[Diagnostic]:
    """A mean that whole multiples do not come up to."""
    sizes = [size for size in (getattr(layer, FIELDS[key]) for layer in layers) if size]
    most, asked = sum(most_kept(size, size, multiple) for size in sizes), target[key] * len(sizes)
    if most < asked and not {"num_layers", "num_attention", "num_feed_forward"} & target.keys():
        message = (
            f"{target[key]} on average make {asked}, and the layers keep at most {most} in multiples of {multiple}"
        )
        hint = f"give at most {most // len(sizes)}, or a smaller multiple"
        yield draft.source.warn("short-of-multiples", pointer, message, hint)


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
    return left.after(target, options["budget"], options.get("multiple_of") or {})


def _whose(cut: bool) -> str:
    return "are left at this point" if cut else "the model has"
