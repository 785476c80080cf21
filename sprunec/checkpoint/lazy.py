"""Parameters that are read while a module's code runs, one or a few rows at a time; the module is on meta."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprunec.checkpoint.safetensors_file import Shape


class StreamedWeight:
    """A matrix (out, in) that a linear multiplies by some rows at a time; for anything else it is made whole.

    Torch hands the calls that it is an argument of to `__torch_function__`.

    Args:
        shape: of the whole.
        read: some of its rows.
        rows: how many at a time.
    """

    def __init__(self, shape: Shape, read: Callable[[range], Tensor], rows: int) -> None:
        self.shape, self.read, self.rows = shape, read, rows

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and len(args) == 2 and isinstance(args[1], cls) and not (kwargs or {}).get("bias"):
            return torch.cat([F.linear(args[0], part) for part in args[1].parts()], dim=-1)
        whole = [torch.cat(list(each.parts())) if isinstance(each, cls) else each for each in args]
        return func(*whole, **(kwargs or {}))

    def parts(self) -> Iterator[Tensor]:
        for first in range(0, self.shape[0], self.rows):
            yield self.read(range(first, min(first + self.rows, self.shape[0])))


class LazyParameters(dict[str, Any]):
    """A module's parameters, each read when its code asks for it.

    Args:
        names: of the parameters; those that are None (a linear without a bias) stay so.
        read: gives one by its name.
        hold: whether to keep what has been read.
    """

    def __init__(self, names: Mapping[str, Any], read: Callable[[str], Any], hold: bool) -> None:
        super().__init__(names)
        self._wanted = {name for name, parameter in names.items() if parameter is not None}
        self._read, self._hold = read, hold

    def __getitem__(self, name: str) -> Any:
        if name not in self._wanted:
            return super().__getitem__(name)
        found = self._read(name)
        if self._hold:
            self[name] = found
            self._wanted.remove(name)
        return found


@contextmanager
def with_parameters(
    model: nn.Module, parts: Sequence[str], read: Callable[[str], Any], *, hold: bool = False
) -> Iterator[None]:
    """Let modules below `parts` read their parameters by their names in `model`.

    Args:
        hold: whether each is read but once.
    """
    changed: list[tuple[nn.Module, Any]] = []
    try:
        for part in parts:
            for name, module in model.get_submodule(part).named_modules(prefix=part):
                changed.append((module, module._parameters))
                module._parameters = LazyParameters(module._parameters, _named(name, read), hold)
        yield
    finally:
        for module, parameters in reversed(changed):
            module._parameters = parameters


def _named(module: str, read: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda name: read(f"{module}.{name}")
