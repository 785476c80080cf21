"""Who is told how a run goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Watcher:
    """Is told how a run goes, and does nothing with it; a progress display does."""

    def node_started(self, index: int, total: int, name: str) -> None: ...

    def node_finished(
        self, index: int, total: int, name: str, *, cached: bool, seconds: float, metrics: Mapping[str, Any]
    ) -> None: ...

    def node_failed(self, index: int, total: int, name: str, error: str) -> None:
        """Hear that the run goes on without a node."""

    def step(self, event: Mapping[str, Any]) -> None: ...

    def message(self, text: str) -> None: ...
