"""A native plan that is built from BMCook's files, with where each part of it comes from."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sprunec.errors import Diagnostic
from sprunec.plan.bmcook_flags import Flags
from sprunec.plan.source import Section, Source

UNITS_OF_TIME = {"day": 86400, "hour": 3600, "minute": 60}
MADE_LATER = "it is made by a stage that learns it"
Origins = Mapping[str, str]  # of options of a pass, the keys that they come from


@dataclass
class PlanBuilder:
    """The passes so far.

    Attributes:
        origins: by pointer into the plan, the file and pointer that a value comes from.
        made: mask files that an earlier stage of this plan writes or applies; a later one has them in force already.
        trained: steps of all passes that train.
    """

    flags: Flags
    passes: list[dict[str, Any]] = field(default_factory=list)
    origins: dict[str, tuple[Source, str]] = field(default_factory=dict)
    found: list[Diagnostic] = field(default_factory=list)
    made: set[str] = field(default_factory=set)
    trained: int = 0

    @property
    def steps(self) -> int:
        """Training steps of each stage."""
        return int(self.flags.of("train_iters"))

    def has_made(self, path: str) -> bool:
        """Tell whether a mask file is in force by now."""
        return os.path.normpath(path) in self.made

    def section(self, source: Source, pointer: str = "") -> BmcookSection:
        return BmcookSection(source, self.found, pointer, plan=self)


@dataclass(eq=False)
class BmcookSection(Section):
    """One object of a file, of which passes are made."""

    plan: PlanBuilder = field(kw_only=True)

    def need(self, key: str, example: Any) -> Any:
        """Give an option that can't be done without; what is wrong with its value the schema has said."""
        if self.written.get(key) in (None, ""):
            shown = f'"{example}"' if isinstance(example, str) else example
            self.error("missing-key", "", f'"{key}" is missing', f'add "{key}": {shown}')
            return None
        return self.written[key]

    def add(self, entry: dict[str, Any], key: str = "", origins: Origins | None = None) -> None:
        """Append a pass that comes from `key`; `origins` say where single options of it do."""
        pointer = f"/passes/{len(self.plan.passes)}"
        self.plan.passes.append(entry)
        self.plan.origins[pointer] = (self.source, self.at(key))
        for option, origin in (origins or {}).items():
            self.plan.origins[f"{pointer}/{option}"] = (self.source, self.at(origin))
        self.plan.trained += entry.get("steps", 0)

    def finetune(self) -> None:
        if self.plan.steps:
            self.add({"pass": "finetune", "steps": self.plan.steps})

    def load(self, *keys: str) -> None:
        """Apply the mask files that these keys name, but for those that this plan has made itself."""
        if wanted := [key for key in keys if not self.plan.has_made(self.written[key])]:
            paths = [self.written[key] for key in wanted]
            origins = {f"path/{index}": key for index, key in enumerate(wanted)}
            self.add({"pass": "load-mask", "path": paths}, wanted[0], origins)
            self.plan.made |= set(map(os.path.normpath, paths))

    def learn(self, entry: dict[str, Any], save: str, origins: Origins | None = None) -> None:
        """Append a pass that learns a mask and, where a path is named, saves it there."""
        if not self.plan.steps:
            hint = "give steps, or say that the mask is fixed, to cut by the files that an earlier run has made"
            self.error("nothing-to-learn", "", "a mask is learned by training, and --train-iters is 0", hint)
        saves = {"save_mask": save} if save else {}
        self.add({"pass": "train-mask", **entry, "steps": self.plan.steps, **saves}, origins=origins)
        self.plan.made |= {os.path.normpath(save)} if save else set()

    def not_yet(self, key: str) -> None:
        """Warn of a mask file that isn't there."""
        self.warn("no-mask-yet", key, f"there is no {self.written[key]}: this stage runs without it", MADE_LATER)


def age(path: str) -> str:
    """Say how long ago a file was made."""
    seconds = max(0.0, time.time() - os.path.getmtime(path))
    for name, length in UNITS_OF_TIME.items():
        if count := int(seconds // length):
            return f"{count} {name}{'s' * (count > 1)} ago"
    return "just now"
