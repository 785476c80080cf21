"""Steps as scalars that TensorBoard shows while a run goes on; `pip install 'sprunec[tensorboard]'`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.errors import InputError
from sprunec.execution.progress import Watcher
from sprunec.show.numbers import is_finite

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FLAG = "--tensorboard"
SCALARS = ("loss", "held_out", "distillation", "learning_rate", "gradient_norm", "tokens_per_second", "memory")


class TensorBoard(Watcher):
    """Writes what training passes tell into a folder, a run of TensorBoard's each, over the steps of the model.

    Another watcher is told all of it as well.

    Raises:
        InputError: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path, other: Watcher) -> None:
        if find_spec("tensorboard") is None:
            message = "the package tensorboard is not installed"
            raise InputError.in_option(FLAG, message, "pip install 'sprunec[tensorboard]'", code="missing-package")
        self._folder, self._other = folder, other
        self._node = ""
        self._writer: SummaryWriter | None = None

    def node_started(self, index: int, total: int, name: str) -> None:
        self.close()
        self._node = name
        self._other.node_started(index, total, name)

    def node_finished(
        self, index: int, total: int, name: str, *, cached: bool, seconds: float, metrics: Mapping[str, Any]
    ) -> None:
        self.close()
        self._other.node_finished(index, total, name, cached=cached, seconds=seconds, metrics=metrics)

    def node_failed(self, index: int, total: int, name: str, error: str) -> None:
        self.close()
        self._other.node_failed(index, total, name, error)

    def step(self, event: Mapping[str, Any]) -> None:
        self._other.step(event)
        if "model_steps" in event:
            self._write(event)

    def message(self, text: str) -> None:
        self._other.message(text)

    def close(self) -> None:
        """Leave what is written; harmless when nothing is open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, event: Mapping[str, Any]) -> None:
        step = event["model_steps"]
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What an earlier run has written from this step on was not saved, and is done again.
            self._writer = SummaryWriter(str(self._folder / self._node), purge_step=step)
        for name, value in scalars(event):
            self._writer.add_scalar(name, value, step)


def scalars(event: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Give what of a step is a finite number, by its name; of budgets what is expected, and the target."""
    found = [(name, event.get(name)) for name in (*SCALARS, "undecided")]
    for budget in event.get("budgets") or ():
        found += [(f"{key}/{budget['name']}", budget.get(key)) for key in ("expected", "target")]
    yield from ((name, value) for name, value in found if is_finite(value))
