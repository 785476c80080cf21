"""Follow the model's size through the passes, and tell targets that it cannot reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sprunec.errors import series, show
from sprunec.families.base_config import LayerShape, ModelConfig
from sprunec.plan.source import has_errors
from sprunec.plan.targets import WHOLE_TARGETS, Left, mismatched, most_kept, quoted
from sprunec.plan.written_plan import Step, WrittenPlan
from sprunec.units import COUNTED, counting

MOST_NAMED = 4
# Targets that some layers cannot keep: the pass cuts the others all the same.
_SHORT = ("short-layers", "short-of-multiples")


def sizes_fit(plan: WrittenPlan) -> None:
    """Check what each mask pass asks of the model that reaches it."""
    if plan.config is None:
        return
    left, cut = Left.of(plan.config), False
    for step in plan.steps:
        if step.declared.by_target and step.is_valid:
            left = _Check(step, left, "are left at this point" if cut else "the model has").run(plan.config)
            cut = True
        elif not step.is_known or step.declared.removes == "units":
            left, cut = left.unknown(), True


@dataclass(frozen=True)
class _Check:
    """One mask pass, what is left of the model when it comes, and how to say whose that is."""

    step: Step
    left: Left
    whose: str

    def run(self, given: ModelConfig) -> Left:
        """Check the pass's targets; give what is left of the plan's `given` model then, a wrong target being none."""
        before = len(self.step.found)
        gates, target = self.step.options.get("gates_for"), self.step.options["target"]
        self._targets("target")
        if gates is not None and gates.keys() == target.keys():
            self._targets("gates_for")
        elif gates is not None:  # what the gates learn is measured as what is cut
            names = " and ".join(target)
            message = f"gates_for gives {' and '.join(gates)}, the target {names}"
            self.step.error("unlike-targets", "gates_for", message, f"give {names} in both", at_key=True)
        self._multiples()
        if not has_errors(self.step.found[before:]):
            self._short(given)
        wrong = {each.pointer for each in self.step.found[before:] if each.code not in _SHORT}
        target = {key: n for key, n in self._own("target").items() if self.step.at(f"target/{key}") not in wrong}
        return self.left.after(target, self.step.options["budget"], self._multiple_of)

    @property
    def _multiple_of(self) -> Mapping[str, int]:
        return self.step.options.get("multiple_of") or {}

    def _own(self, where: str) -> dict[str, Any]:
        """Give the targets but for those that count no units of this pass."""
        strangers = mismatched(self.step.options["unit"], self.step.options[where])
        return {key: wanted for key, wanted in self.step.options[where].items() if key not in strangers}

    def _targets(self, where: str) -> None:
        if "parameters" in self.step.options[where]:
            self._parameters(where)
        for key, wanted in ((key, n) for key, n in self._own(where).items() if key in COUNTED):
            counted, most = COUNTED[key].counted, self.left.most(key, self.step.options["budget"])
            # layers may lose something only because what they keep is to be a multiple
            multiple = self._multiple_of.get(key, 1) if where == "target" and self.left.known else 1
            if wanted > most:
                message = f"{wanted} is above {most}, the {counted} that {self.whose}"
                hint = f"give less than {most}" if most > 1 else f"take {key} out"
                self.step.error("target-too-large", f"{where}/{key}", message, hint)
            elif wanted == most and not any(size % multiple for size in self._sizes(key)):
                self._nothing_to_cut(f"{where}/{key}", f"{wanted} is the number of {counted}")

    def _sizes(self, key: str) -> list[int]:
        """Give what each layer has of what a count target counts; 0 of whole sublayers."""
        return [layer.counts.get(COUNTED[key].name, 0) for layer in self.left.config.layers]

    def _nothing_to_cut(self, key: str, message: str) -> None:
        message = f"{message} that {self.whose}: nothing would be cut"
        self.step.warn("nothing-to-cut", key, message, "give less, or remove the pass")

    def _parameters(self, where: str) -> None:
        wanted, units = self.step.options[where]["parameters"], self.step.options["unit"]
        least, most = self.left.least_parameters(units), self.left.parameters
        hint = f"give more than {least:,} and less than {most:,}"
        key, written = f"{where}/parameters", show(self.step.written[where]["parameters"])
        if wanted > most:
            message = f"{written} is above the {most:,} parameters that {self.whose}"
            self.step.error("target-too-large", key, message, hint)
        elif wanted < least:
            message = f"{written} is below the {least:,} parameters that stay when every unit {quoted(units)} is cut"
            self.step.error("target-too-small", key, message, hint)
        elif wanted == most and self.left.known:
            self._nothing_to_cut(key, f"{written} is the number of parameters")

    def _multiples(self) -> None:
        """Check that they are about units of the pass, no more than a layer has, and that a count target is one."""
        for name, multiple in self._multiple_of.items():
            most, wanted = self.left.counts[name], self.step.options["target"].get(name, 0)
            if not set(counting(name)) & set(self.step.options["unit"]):
                message = f"{name} is not what this pass cuts: its unit is {quoted(self.step.options['unit'])}"
                hint = f"remove it, or add unit {show(COUNTED[name].name)}"
                self.step.error("unit-mismatch", f"multiple_of/{name}", message, hint, at_key=True)
            elif multiple > most:
                message = f"{multiple} is above {most}, the most that a layer has here: all would keep none"
                self.step.error("multiple-too-large", f"multiple_of/{name}", message, f"give at most {most}")
            elif wanted % multiple:
                message = f"{wanted} is not a multiple of {multiple}, and multiple_of asks for one"
                below = wanted // multiple * multiple
                hint = f"give {below} or {below + multiple}" if below else f"give {multiple}"
                self.step.error("uneven-target", f"target/{name}", message, hint)

    def _short(self, given: ModelConfig) -> None:
        """Find counts that not every layer, or for a mean not all of them together, can keep."""
        together = self.step.options["target"].keys().isdisjoint(WHOLE_TARGETS)
        for key, wanted in self._own("target").items() if self.left.known else ():
            if key not in COUNTED or key in WHOLE_TARGETS:
                continue
            multiple, sizes = self._multiple_of.get(key, 1), [size for size in self._sizes(key) if size]
            if self.step.options["budget"] == "global":
                most, asked = sum(most_kept(size, size, multiple) for size in sizes), wanted * len(sizes)
                if most < asked and together:
                    what = f"{wanted} on average make {asked}, and the layers keep at most {most}"
                    hint = f"give at most {most // len(sizes)}, or a smaller multiple"
                    self.step.warn("short-of-multiples", f"target/{key}", f"{what} in multiples of {multiple}", hint)
                continue
            short = short_layers(self.left.config.layers, key, wanted, multiple)
            gone = short_layers(given.layers, key, wanted)  # what earlier passes took away needs no word
            short = {index: most for index, most in short.items() if most is not None or gone.get(index, 0) is None}
            if short:
                least = min((most for most in short.values() if most is not None), default=None)
                less = f"at most {least}" if least else "a smaller multiple"
                hint = f'give {less}, or "budget": "global" for a mean' if least is not None else "they stay without"
                self.step.warn("short-layers", f"target/{key}", short_message(key, wanted, short), hint)


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
    parts, unit = [], COUNTED[key]
    for most, indices in alike.items():
        several, rest = len(indices) > 1, len(indices) - MOST_NAMED
        names = [*map(str, indices[:MOST_NAMED]), *([f"{rest} more"] if rest > 0 else [])]
        keep = f"{'keep' if several else 'keeps'} {most or 'none'}"
        if most is None:
            keep = f"{'have' if several else 'has'} no {unit.sublayers[0].replace('_', '-')}"
        parts.append(f"layer{'s' if several else ''} {series(names, 'and')} {keep}")
    more = f" and {len(parts) - MOST_NAMED} more numbers" if len(parts) > MOST_NAMED else ""
    return f"not every layer has {wanted} {unit.several}: {', '.join(parts[:MOST_NAMED])}{more}"
