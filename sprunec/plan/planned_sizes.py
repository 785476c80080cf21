"""Follow the model's size through the passes, and tell targets that it cannot reach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sprunec.errors import Diagnostic, series, show
from sprunec.families.base_config import LayerShape, ModelConfig
from sprunec.plan.resolve import Draft, Step
from sprunec.plan.targets import WHOLE_TARGETS, Left, mismatched, most_kept
from sprunec.units import COUNTED, counting

MOST_NAMED = 4
# Targets that some layers cannot keep: the pass cuts the others all the same.
_SHORT = ("short-layers", "short-of-multiples")


def size_findings(draft: Draft, config: ModelConfig | None) -> Iterator[Diagnostic]:
    """Check what each mask pass asks of the model that reaches it."""
    if config is None:
        return
    left, cut = Left.of(config), False
    for step in draft.steps:
        if step.declared.by_target and step.options is not None:
            check = _Check(draft, step, step.options, left, "are left at this point" if cut else "the model has")
            found = list(check.findings(config))
            yield from found
            left, cut = check.after([each.pointer for each in found if each.code not in _SHORT]), True
        elif not step.name or step.declared.removes == "units":
            left, cut = left.unknown(), True


@dataclass(frozen=True)
class _Check:
    """One mask pass, what is left of the model when it comes, and how to say whose that is."""

    draft: Draft
    step: Step
    options: Mapping[str, Any]
    left: Left
    whose: str

    def findings(self, given: ModelConfig) -> Iterator[Diagnostic]:
        """Check the pass's targets; `given` is the model as it comes into the plan."""
        found = [*self._targets("target"), *self._gates(), *self._multiples()]
        yield from found
        if not any(each.severity == "error" for each in found):
            yield from self._short(given)

    def after(self, wrong: list[str]) -> Left:
        """Give what is left when the pass has done what it can; a wrong target is taken for none."""
        strangers = mismatched(self.options["unit"], self.options["target"])
        pointer = f"{self.step.pointer}/target"
        fine = [key for key in self.options["target"] if key not in strangers and f"{pointer}/{key}" not in wrong]
        target = {key: self.options["target"][key] for key in fine}
        return self.left.after(target, self.options["budget"], self._multiple_of)

    @property
    def _multiple_of(self) -> Mapping[str, int]:
        return self.options.get("multiple_of") or {}

    @property
    def _units(self) -> str:
        return " and ".join(show(unit) for unit in self.options["unit"])

    def _counts(self, where: str) -> dict[str, int]:
        """Give the count targets that count units of this pass."""
        strangers = mismatched(self.options["unit"], self.options[where])
        return {key: n for key, n in self.options[where].items() if key in COUNTED and key not in strangers}

    def _gates(self) -> Iterator[Diagnostic]:
        """Check that what the gates learn is measured as what is cut."""
        if "gates_for" not in self.options:
            return
        if self.options["gates_for"].keys() == self.options["target"].keys():
            yield from self._targets("gates_for")
            return
        names, pointer = " and ".join(self.options["target"]), f"{self.step.pointer}/gates_for"
        message = f"gates_for gives {' and '.join(self.options['gates_for'])}, the target {names}"
        yield self.draft.source.find("unlike-targets", pointer, message, f"give {names} in both", key=True)

    def _targets(self, where: str) -> Iterator[Diagnostic]:
        if "parameters" in self.options[where]:
            yield from self._parameters(where)
        for key, wanted in self._counts(where).items():
            pointer, most = f"{self.step.pointer}/{where}/{key}", self.left.most(key, self.options["budget"])
            counted = COUNTED[key].counted
            if wanted > most:
                message = f"{wanted} is above {most}, the {counted} that {self.whose}"
                hint = f"give less than {most}" if most > 1 else f"take {key} out"
                yield self.draft.source.find("target-too-large", pointer, message, hint)
            elif wanted == most and not (where == "target" and self._trims(key)):
                message = f"{wanted} is the number of {counted} that {self.whose}: nothing would be cut"
                yield self.draft.source.warn("nothing-to-cut", pointer, message, "give less, or remove the pass")

    def _trims(self, key: str) -> bool:
        """Tell whether layers lose something only because what they keep is to be a multiple."""
        if key in WHOLE_TARGETS or not self.left.known:
            return False
        sizes = (layer.counts.get(COUNTED[key].name, 0) for layer in self.left.config.layers)
        return any(size % self._multiple_of.get(key, 1) for size in sizes)

    def _parameters(self, where: str) -> Iterator[Diagnostic]:
        wanted, least = self.options[where]["parameters"], self.left.least_parameters(self.options["unit"])
        most, pointer, source = self.left.parameters, f"{self.step.pointer}/{where}/parameters", self.draft.source
        hint = f"give more than {least:,} and less than {most:,}"
        written = show(self.step.given[where]["parameters"])
        if wanted > most:
            message = f"{written} is above the {most:,} parameters that {self.whose}"
            yield source.find("target-too-large", pointer, message, hint)
        elif wanted < least:
            message = f"{written} is below the {least:,} parameters that stay when every unit {self._units} is cut"
            yield source.find("target-too-small", pointer, message, hint)
        elif wanted == most and self.left.known:
            message = f"{written} is the number of parameters that {self.whose}: nothing would be cut"
            yield source.warn("nothing-to-cut", pointer, message, "give less, or remove the pass")

    def _multiples(self) -> Iterator[Diagnostic]:
        """Check that they are about units of the pass, no more than a layer has, and that a count target is one."""
        for name, multiple in self._multiple_of.items():
            pointer, most = f"{self.step.pointer}/multiple_of/{name}", self.left.counts[name]
            wanted, source = self.options["target"].get(name, 0), self.draft.source
            if not set(counting(name)) & set(self.options["unit"]):
                message = f"{name} is not what this pass cuts: its unit is {self._units}"
                hint = f"remove it, or add unit {show(COUNTED[name].name)}"
                yield source.find("unit-mismatch", pointer, message, hint, key=True)
            elif multiple > most:
                message = f"{multiple} is above {most}, the most that a layer has here: all would keep none"
                yield source.find("multiple-too-large", pointer, message, f"give at most {most}")
            elif wanted % multiple:
                message = f"{wanted} is not a multiple of {multiple}, and multiple_of asks for one"
                below = wanted // multiple * multiple
                hint = f"give {below} or {below + multiple}" if below else f"give {multiple}"
                yield source.find("uneven-target", f"{self.step.pointer}/target/{name}", message, hint)

    def _short(self, given: ModelConfig) -> Iterator[Diagnostic]:
        """Find counts that not every layer, or not all of them together, can keep."""
        for key, wanted in (self._counts("target") if self.left.known else {}).items():
            if key in WHOLE_TARGETS:
                continue
            if self.options["budget"] == "global":
                yield from self._short_together(key, wanted)
                continue
            short = short_layers(self.left.config.layers, key, wanted, self._multiple_of.get(key, 1))
            gone = short_layers(given.layers, key, wanted)  # what earlier passes took away needs no word
            short = {index: most for index, most in short.items() if most is not None or gone.get(index, 0) is None}
            if short:
                least = min((most for most in short.values() if most is not None), default=None)
                less = f"at most {least}" if least else "a smaller multiple"
                hint = f'give {less}, or "budget": "global" for a mean' if least is not None else "they stay without"
                pointer, message = f"{self.step.pointer}/target/{key}", short_message(key, wanted, short)
                yield self.draft.source.warn("short-layers", pointer, message, hint)

    def _short_together(self, key: str, wanted: int) -> Iterator[Diagnostic]:
        """Find a mean that whole multiples do not come up to."""
        multiple = self._multiple_of.get(key, 1)
        sizes = [size for layer in self.left.config.layers if (size := layer.counts.get(COUNTED[key].name))]
        most, asked = sum(most_kept(size, size, multiple) for size in sizes), wanted * len(sizes)
        if most < asked and self.options["target"].keys().isdisjoint(WHOLE_TARGETS):
            message = f"{wanted} on average make {asked}, and the layers keep at most {most} in multiples of {multiple}"
            hint = f"give at most {most // len(sizes)}, or a smaller multiple"
            yield self.draft.source.warn("short-of-multiples", f"{self.step.pointer}/target/{key}", message, hint)


def short_layers(layers: Sequence[LayerShape], key: str, wanted: int, multiple: int = 1) -> dict[int, int | None]:
    """Tell what the layers keep that cannot keep `wanted` of a count target; None: they have no such sublayer."""
    sizes = [layer.counts.get(COUNTED[key].name, 0) for layer in layers]
    kept = {index: most_kept(size, wanted, multiple) if size else None for index, size in enumerate(sizes)}
    return {index: most for index, most in kept.items() if most is None or most < wanted}


def short_message(key: str, wanted: int, short: Mapping[int, int | None]) -> str:
    """Say `not every layer has 2 heads: layer 1 keeps 1, layers 2 and 5 have no attention`."""
    alike: dict[int | None, list[int]] = {}
    for index, most in short.items():
        alike.setdefault(most, []).append(index)
    parts = [_keep(indices, key, most) for most, indices in alike.items()]
    more = f" and {len(parts) - MOST_NAMED} more numbers" if len(parts) > MOST_NAMED else ""
    return f"not every layer has {wanted} {COUNTED[key].several}: {', '.join(parts[:MOST_NAMED])}{more}"


def _keep(indices: Sequence[int], key: str, most: int | None) -> str:
    several, more = len(indices) > 1, len(indices) - MOST_NAMED
    names = [*map(str, indices[:MOST_NAMED]), *([f"{more} more"] if more > 0 else [])]
    who = f"layer{'s' if several else ''} {series(names, 'and')}"
    if most is None:
        return f"{who} {'have' if several else 'has'} no {COUNTED[key].sublayers[0].replace('_', '-')}"
    return f"{who} {'keep' if several else 'keeps'} {most or 'none'}"
