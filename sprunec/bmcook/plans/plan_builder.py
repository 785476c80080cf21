"""A native plan that is built from BMCook's files, with where each part of it comes from."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

from sprunec.errors import Diagnostic
from sprunec.plan.bmcook_flags import Flags
from sprunec.plan.source import Source

UNITS_OF_TIME = {"day": 86400, "hour": 3600, "minute": 60}


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
        steps: int = self.flags.of("train_iters")
        return steps

    def has_made(self, path: str) -> bool:
        """Tell whether a mask file is in force by now."""
        return os.path.normpath(path) in self.made


@dataclass(frozen=True)
class Section:
    """One object of a file, of which passes are made; keys, such as `a/b`, are paths from it."""

    plan: PlanBuilder
    source: Source
    pointer: str
    options: dict[str, Any]

    def at(self, key: str) -> str:
        """Give the pointer of a key; of the section itself for an empty one."""
        return f"{self.pointer}/{key}" if key else self.pointer

    def warn(self, code: str, key: str, message: str, hint: str = "", *, at_key: bool = False) -> None:
        self.plan.found.append(self.source.warn(code, self.at(key), message, hint, key=at_key))

    def error(self, code: str, key: str, message: str, hint: str, *, at_key: bool = False) -> None:
        self.plan.found.append(self.source.find(code, self.at(key), message, hint, key=at_key))

    def need(self, key: str, example: Any) -> Any:
        """Give an option that can't be done without; what is wrong with its value the schema has said."""
        if self.options.get(key) in (None, ""):
            shown = f'"{example}"' if isinstance(example, str) else example
            self.error("missing-key", "", f'"{key}" is missing', f'add "{key}": {shown}')
            return None
        return self.options[key]

    def add(self, entry: dict[str, Any], key: str = "", **keys: str) -> None:
        """Append a pass that comes from `key`; `keys` say where single options of it do."""
        pointer = f"/passes/{len(self.plan.passes)}"
        self.plan.passes.append(entry)
        self.plan.origins[pointer] = (self.source, self.at(key))
        for option, origin in keys.items():
            self.plan.origins[f"{pointer}/{option.replace('__', '/')}"] = (self.source, self.at(origin))
        self.plan.trained += entry.get("steps", 0)

    def finetune(self) -> None:
        if self.plan.steps:
            self.add({"pass": "finetune", "steps": self.plan.steps})

    def load(self, *keys: str) -> None:
        """Apply the mask files that these keys name, but for those that this plan has made itself."""
        if wanted := [key for key in keys if not self.plan.has_made(self.options[key])]:
            paths = [self.options[key] for key in wanted]
            origins = {f"path__{index}": key for index, key in enumerate(wanted)}
            self.add({"pass": "load-mask", "path": paths}, wanted[0], **origins)
            self.plan.made |= set(map(os.path.normpath, paths))

    def learn(self, entry: dict[str, Any], save: str, **keys: str) -> None:
        """Append a pass that learns a mask and, where a path is named, saves it there."""
        if not self.plan.steps:
            hint = "give steps, or say that the mask is fixed, to cut by the files that an earlier run has made"
            self.error("nothing-to-learn", "", "a mask is learned by training, and --train-iters is 0", hint)
        saves = {"save_mask": save} if save else {}
        self.add({"pass": "train-mask", **entry, "steps": self.plan.steps, **saves}, **keys)
        self.plan.made |= {os.path.normpath(save)} if save else set()


def age(path: str) -> str:
    """Say how long ago a file was made."""
    seconds = max(0.0, time.time() - os.path.getmtime(path))
    for name, length in UNITS_OF_TIME.items():
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {name}{'s' * (count > 1)} ago"
    return "just now"
