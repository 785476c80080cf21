"""Resolve a plan: the parsed file, what is wrong in it, and the options of each pass in which nothing is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sprunec.errors import Diagnostic
from sprunec.plan.declared import PASSES, UNKNOWN, Pass, calibrates
from sprunec.plan.schema import pass_names, properties, resolve
from sprunec.plan.source import Source
from sprunec.plan.targets import parameter_count

_WARMUP_SHARE = 20
_GATE_PATH, _GATE_RATES = 30.0, (0.1, 1.0)  # far enough to open or close for good, in however few steps


def needs_calibration(options: Mapping[str, Any]) -> bool:
    """Tell whether a pass that chooses a mask needs calibration data, to score units or to compensate for them."""
    return calibrates(options.get("criterion")) or options.get("compensate") is not None


@dataclass(frozen=True)
class Step:
    """One entry of `passes`; `options` is None when its schema found an error in it."""

    name: str
    pointer: str
    given: Mapping[str, Any]
    options: Mapping[str, Any] | None

    @property
    def declared(self) -> Pass:
        """What the pass says about itself; of an unknown name nothing is known."""
        return PASSES.get(self.name, UNKNOWN)

    @property
    def needs_data(self) -> bool:
        return self.declared.trains or (self.declared.removes == "units" and needs_calibration(self.given))


@dataclass(frozen=True)
class Draft:
    """A plan's source with the pointers that are known to be wrong, so that one mistake is told once."""

    source: Source
    wrong: frozenset[str]

    @classmethod
    def of(cls, source: Source, found: Iterable[Diagnostic]) -> Draft:
        return cls(source, frozenset(finding.pointer for finding in found if _spoils(finding)))

    @property
    def folder(self) -> Path:
        return self.source.folder

    @property
    def paths_start(self) -> str:
        """Tell what paths start from: BMCook's files mean the current directory."""
        start = "current directory" if self.source.is_made else "plan's folder"
        return f"paths are relative to the {start}"

    def sound(self, pointer: str) -> bool:
        """Tell whether nothing is wrong at the pointer or below it."""
        return not any(place == pointer or place.startswith(f"{pointer}/") for place in self.wrong)

    def section(self, name: str) -> dict[str, Any]:
        """Return a section's sound values with the defaults of those not given; a wrong one is absent."""
        written = self.source.value.get(name)
        given = written.items() if isinstance(written, dict) else ()
        sound = {key: value for key, value in given if self.sound(f"/{name}/{key}")}
        options = resolve(properties("plan")[name], sound)
        return {key: value for key, value in options.items() if self.sound(f"/{name}/{key}")}

    def has(self, name: str) -> bool:
        return name in self.source.value

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        passes = self.source.value.get("passes")
        entries = passes if isinstance(passes, list) else []
        return tuple(self._step(f"/passes/{index}", entry) for index, entry in enumerate(entries))

    def valid(self, training: bool = False) -> Iterator[tuple[Step, Mapping[str, Any]]]:
        """Yield the steps in which no error was found, with their options: all, or those that train."""
        for step in self.steps:
            if step.options is not None and (step.declared.trains or not training):
                yield step, step.options

    def _step(self, pointer: str, entry: Any) -> Step:
        given = entry if isinstance(entry, dict) else {}
        name = given.get("pass")
        name = name if isinstance(name, str) and name in pass_names() else ""
        if not name or not self.sound(pointer):
            return Step(name, pointer, given, None)
        rules = properties(f"passes/{name}")
        own = {key: value for key, value in given.items() if key != "pass"}
        shared = {key: value for key, value in self.section("training").items() if key in rules}
        return Step(name, pointer, given, finish(resolve(f"passes/{name}", shared | own), self.folder))


def finish(options: dict[str, Any], folder: Path) -> Mapping[str, Any]:
    """Write in one way, which passes read, what a plan may write in several."""
    if "unit" in options:
        options["unit"] = as_list(options["unit"])
        options |= {key: _target(options[key]) for key in ("target", "gates_for") if key in options}
    if "path" in options:
        options["path"] = tuple(folder / path for path in as_list(options["path"]))
    if options.get("save_mask") is not None:
        options["save_mask"] = folder / options["save_mask"]
    if (options.get("distillation") or {}).get("teacher") is not None:
        options["distillation"] = options["distillation"] | {"teacher": folder / options["distillation"]["teacher"]}
    if options.get("warmup_steps", 0) is None:
        options["warmup_steps"] = options["steps"] // _WARMUP_SHARE
    if options.get("mask_learning_rate", 0) is None:
        least, most = _GATE_RATES
        options["mask_learning_rate"] = min(most, max(least, _GATE_PATH / options["steps"]))
    return MappingProxyType({key: freeze(value) for key, value in options.items()})


def as_list(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        return MappingProxyType({key: freeze(item) for key, item in value.items()})
    return tuple(freeze(item) for item in value) if isinstance(value, list | tuple) else value


def _target(target: Mapping[str, Any]) -> dict[str, Any]:
    return {key: parameter_count(value) if key == "parameters" else value for key, value in target.items()}


def _spoils(finding: Diagnostic) -> bool:
    """Tell whether what is around a finding cannot be read: a key that is merely unknown leaves the rest readable."""
    unknown = finding.code == "unknown-key" and not finding.hint.startswith("did you mean")
    return finding.severity == "error" and not unknown and finding.code != "duplicate-key"
