"""A native plan that grows from BMCook's files, with where each part of it comes from."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

from sprunec.errors import Diagnostic
from sprunec.plan.bmcook_flags import Flags
from sprunec.plan.source import Source

MINUTE, HOUR, DAY = 60, 3600, 86400


@dataclass
class Growing:
    """Passes so far.

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
        """Of each stage."""
        steps: int = self.flags.of("train_iters")
        return steps

    def add(self, entry: dict[str, Any], source: Source, pointer: str, **places: str) -> None:
        """Append a pass that comes from `pointer`; `places` say where single options of it do."""
        at = f"/passes/{len(self.passes)}"
        self.passes.append(entry)
        self.origins[at] = (source, pointer)
        for option, place in places.items():
            self.origins[f"{at}/{option.replace('__', '/')}"] = (source, place)
        self.trained += entry.get("steps", 0)

    def finetune(self, source: Source, pointer: str) -> None:
        if self.steps:
            self.add({"pass": "finetune", "steps": self.steps}, source, pointer)

    def load(self, source: Source, files: dict[str, str]) -> None:
        """Masks from files, by the pointer that names them, but for those that this plan has made itself."""
        wanted = {pointer: path for pointer, path in files.items() if not self.has_made(path)}
        if wanted:
            places = {f"path__{index}": pointer for index, pointer in enumerate(wanted)}
            first = next(iter(wanted))
            self.add({"pass": "load-mask", "path": list(wanted.values())}, source, first, **places)
            self.made |= {os.path.normpath(path) for path in wanted.values()}

    def learn(self, source: Source, pointer: str, entry: dict[str, Any], save: str, **places: str) -> None:
        """A pass that learns a mask and, where a path is named, saves it there."""
        if not self.steps:
            message = "a mask is learned by training, and --train-iters is 0"
            hint = "give steps, or say that the mask is fixed, to cut by the files that an earlier run has made"
            self.found.append(source.find("nothing-to-learn", pointer, message, hint))
        saves = {"save_mask": save} if save else {}
        self.add({"pass": "train-mask", **entry, "steps": self.steps, **saves}, source, pointer, **places)
        self.made |= {os.path.normpath(save)} if save else set()

    def has_made(self, path: str) -> bool:
        """Whether a mask file is in force by now."""
        return os.path.normpath(path) in self.made

    def warn(self, source: Source, code: str, pointer: str, message: str, hint: str = "", *, key: bool = False) -> None:
        self.found.append(source.warn(code, pointer, message, hint, key=key))

    def error(self, source: Source, code: str, pointer: str, message: str, hint: str, *, key: bool = False) -> None:
        self.found.append(source.find(code, pointer, message, hint, key=key))


def age(path: str) -> str:
    """How long ago a file was made, in words."""
    seconds = max(0.0, time.time() - os.path.getmtime(path))
    for unit, name in ((DAY, "day"), (HOUR, "hour"), (MINUTE, "minute")):
        if seconds >= unit:
            count = int(seconds // unit)
            return f"{count} {name}{'s' * (count > 1)} ago"
    return "just now"
