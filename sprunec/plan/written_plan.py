"""A plan as it is written: what is wrong in it, and the options of each pass in which nothing is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sprunec.checkpoint.gguf_file import is_gguf
from sprunec.checkpoint.hub import TOKENIZER
from sprunec.data.fast_tokenizer import gguf_lacks
from sprunec.data.task_files import is_task_file
from sprunec.families.base_config import ModelConfig
from sprunec.families.cards import card_of
from sprunec.plan.declared import PASSES, UNKNOWN, Pass, calibrates
from sprunec.plan.schema import pass_names, properties, resolve
from sprunec.plan.source import Section
from sprunec.plan.targets import parameter_count

CHARACTERS = "characters"
_WARMUP_SHARE = 20
_ADAPTED_RATE = 10  # a matrix that begins at zero moves the weight less
_GATE_PATH, _GATE_RATES = 30.0, (0.1, 1.0)  # far enough to open or close for good, in however few steps


def needs_calibration(options: Mapping[str, Any]) -> bool:
    """Tell whether a pass that chooses a mask needs calibration data, to score units or to compensate for them."""
    searched = "target" in options and "units" in options
    return searched or calibrates(options.get("criterion")) or options.get("compensate") is not None


@dataclass(eq=False)
class Step(Section):
    """One entry of `passes`.

    Attributes:
        name: of its pass; empty where there is no pass of the name that is written.
        is_valid: its schema has found no error in it.
        options: with defaults, as passes read them; none where it is not valid.
    """

    name: str = ""
    is_valid: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_known(self) -> bool:
        return bool(self.name)

    @property
    def declared(self) -> Pass:
        """What the pass says about itself; of an unknown name nothing is known."""
        return PASSES.get(self.name, UNKNOWN)

    @property
    def units(self) -> tuple[str, ...]:
        """The kinds of units that it is said to cut; none where it does not say, or is not valid."""
        found: tuple[str, ...] = self.options.get("units" if "grid" in self.options else "unit", ())
        return found

    def option_at(self, key: str) -> str:
        """Tell where an option stands that may be written in the pass or in the plan's `training`."""
        return self.at(key) if key in self.written else f"/training/{key}"


@dataclass(eq=False)
class WrittenPlan(Section):
    """A plan's file while it is checked; `found` grows.

    Attributes:
        strict: a missing checkpoint, data or mask file, or package, is an error.
        config: the model's; None until it is read, and where it cannot be.
        wrong_pointers: what the schema has found to be wrong; it is told, and checks pass over it.
    """

    strict: bool = False
    config: ModelConfig | None = None

    def __post_init__(self) -> None:
        # a key that is merely unknown, or given twice, leaves what is around it readable
        known = [each for each in self.found if each.code != "unknown-key" or each.hint.startswith("did you mean")]
        wrong = (each for each in known if each.severity == "error" and each.code != "duplicate-key")
        self.wrong_pointers = frozenset(each.pointer for each in wrong)

    @property
    def paths_start(self) -> str:
        """Tell what paths start from: BMCook's files mean the current directory."""
        start = "current directory" if self.source.is_made else "plan's folder"
        return f"paths are relative to the {start}"

    def is_valid(self, pointer: str) -> bool:
        """Tell whether nothing is wrong at the pointer or below it."""
        return not any(f"{place}/".startswith(f"{pointer}/") for place in self.wrong_pointers)

    @cached_property
    def tokenizer(self) -> str | Path:
        """The file that the data names, else the one in the model's directory; else "characters"."""
        checkpoint = self.section("model").written.get("checkpoint")
        named: str = self.options("data").get("tokenizer", CHARACTERS)
        if "tokenizer" not in self.section("data").written and checkpoint is not None:
            model: Path = self.source.folder / checkpoint
            own = model if is_gguf(model) and not gguf_lacks(model) else model / TOKENIZER
            if os.path.isfile(own):
                return own
        return named if named == CHARACTERS else self.source.folder / named

    def options(self, name: str) -> dict[str, Any]:
        """Return a section's valid values with the defaults of those not given; a wrong one is absent."""
        written = self.section(name).written.items()
        given = dict(card_of(self.config).training) if name == "training" else {}
        given |= {key: value for key, value in written if self.is_valid(f"/{name}/{key}")}
        resolved = resolve(properties("plan")[name], given)
        return {key: value for key, value in resolved.items() if self.is_valid(f"/{name}/{key}")}

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        passes = self.written.get("passes")
        return tuple(map(self._step, range(len(passes) if isinstance(passes, list) else 0)))

    @property
    def valid_steps(self) -> list[Step]:
        return [step for step in self.steps if step.is_valid]

    def _step(self, index: int) -> Step:
        step = Step(self.source, self.found, f"/passes/{index}")
        name = step.written.get("pass")
        if isinstance(name, str) and name in pass_names():
            step.name, step.is_valid = name, self.is_valid(step.pointer)
        if step.is_valid:
            rules = properties(f"passes/{name}")
            own = {key: value for key, value in step.written.items() if key != "pass"}
            shared = {key: value for key, value in self.options("training").items() if key in rules}
            options = resolve(f"passes/{name}", shared | own)
            if options.get("adapter") and not {"learning_rate"} & {*own, *self.section("training").written}:
                options["learning_rate"] *= _ADAPTED_RATE
            step.options = finish(options, self.source.folder, self.config)
        return step


def finish(options: dict[str, Any], folder: Path, config: ModelConfig | None = None) -> Mapping[str, Any]:
    """Write in one way, which passes read, what a plan may write in several, or leave to the model's family."""
    if "unit" in options:
        options["unit"] = as_list(options["unit"])
        for key in ("target", "gates_for"):
            if "parameters" in options.get(key, ()):
                options[key] = options[key] | {"parameters": parameter_count(options[key]["parameters"])}
    if "grid" in options:  # a search's
        options["target"] = tuple(map(_limits, as_list(options["target"])))
    if options.get("latency_table") is not None:
        options["latency_table"] = folder / options["latency_table"]
    if "path" in options:
        options["path"] = tuple(folder / path for path in as_list(options["path"]))
    if "tasks" in options:
        options["tasks"] = [folder / task if is_task_file(task) else task for task in options["tasks"]]
    for key in ("save_mask", "save_table"):
        if options.get(key) is not None:
            options[key] = folder / options[key]
    if (options.get("distillation") or {}).get("teacher") is not None:
        options["distillation"] = options["distillation"] | {"teacher": folder / options["distillation"]["teacher"]}
    if options.get("tensors", ()) is None:
        options["tensors"] = card_of(config).sparse(config)
    if options.get("warmup_steps", 0) is None:
        options["warmup_steps"] = options["steps"] // _WARMUP_SHARE
    if options.get("mask_learning_rate", 0) is None:
        least, most = _GATE_RATES
        options["mask_learning_rate"] = min(most, max(least, _GATE_PATH / options["steps"]))
    return MappingProxyType({key: _freeze(value) for key, value in options.items()})


def _limits(target: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what one target of a search leaves out."""
    found = resolve("limits", target)
    found |= {key: parameter_count(found[key]) for key in ("parameters", "active_parameters") if key in found}
    if (asked := found.get("operations")) is not None:
        found["operations"] = asked | {"per_token": parameter_count(asked["per_token"])}
    return found


def as_list(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        return MappingProxyType({key: _freeze(item) for key, item in value.items()})
    return tuple(_freeze(item) for item in value) if isinstance(value, list | tuple) else value
