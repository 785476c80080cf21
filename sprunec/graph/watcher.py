"""Who is told how a run goes: a progress display, a test, or nobody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Watcher(Protocol):
    """Who is told how a run goes."""

    def node_started(self, index: int, total: int, name: str) -> None: ...

    def node_finished(
        self, index: int, total: int, name: str, *, cached: bool, seconds: float, metrics: Mapping[str, Any]
    ) -> None: ...

    def step(self, event: Mapping[str, Any]) -> None: ...

    def message(self, text: str) -> None: ...


class Nobody:
    """Watches nothing."""

    def node_started(self, index: int, total: int, name: str) -> None: ...

    def node_finished(
        self, index: int, total: int, name: str, *, cached: bool, seconds: float, metrics: Mapping[str, Any]
    ) -> None: ...

    def step(self, event: Mapping[str, Any]) -> None: ...

    def message(self, text: str) -> None: ...
