"""What a pass is handed: options, the artifacts it needs as directories, and a directory to fill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.engines.world import World

if TYPE_CHECKING:
    from sprunec.engines.checkpoints import Saves


@dataclass(frozen=True)
class Job:
    """One use of one pass.

    Attributes:
        options: everything that decides the result, besides the inputs.
        inputs: directories of finished artifacts, by the names in the pass table.
        files: the user's own files, by role.
        out: an empty directory; what is in it when `run` returns is the artifact.
        device: where to work; it must not change the result.
        report: takes an event a training step.
        saves: where a training pass is saved while it runs; None: it is not.
        engine: the plan's choice of what trains, and how; no more than the device does it change the result.
        world: the processes that train. Only its lead has something to leave in `out`.
    """

    options: Mapping[str, Any]
    inputs: Mapping[str, Path]
    files: Mapping[str, tuple[Path, ...]]
    out: Path
    device: str
    report: Callable[[dict[str, Any]], None]
    saves: Saves | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)
    world: World = field(default_factory=World)
