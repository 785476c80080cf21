"""Tables that grow by a file: passes, export formats, criteria.

    FORMATS = Registry(Format, "sprunec.formats")     the table of a room; read as any mapping, by name
    SPRUNEC = Format("sprunec", ...)                  in sprunec/formats/ours.py: one row, in the file that does it

Another package adds rows from modules of its own, by entry points in the group that is called as the room:

    [project.entry-points."sprunec.formats"]
    gguf = "sprunec_gguf.gguf"

A row's schema stands beside its module there (`gguf.schema.json`), and in `schemas/` for our own.
Tables are filled when they are first read, by importing the room's modules: these import no torch.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType
from typing import Generic, Protocol, TypeVar


class Named(Protocol):
    """What can be a row of a table."""

    @property
    def name(self) -> str: ...


Row = TypeVar("Row", bound=Named)


class Registry(Mapping[str, Row], Generic[Row]):
    """Rows by name: every instance of `kind` that a module of the room, or an entry point's, has at its top level.

    Args:
        room: a package, or one module that holds all of our own rows; entry points use its name as their group.
    """

    def __init__(self, kind: type[Row], room: str) -> None:
        self._kind, self._room = kind, room

    def __getitem__(self, name: str) -> Row:
        return self._rows[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def added(self) -> dict[str, Path]:
        """By name, where the schema of each row lies that another package adds, if it has one."""
        found = {name: Path(str(home.__file__)) for name, (_, home) in self._rows.items()}
        ours = f"{self._room}."
        return {
            name: path.with_name(f"{path.stem}.schema.json")
            for name, path in found.items()
            if not f"{self._rows[name][1].__name__}.".startswith(ours)
        }

    @cached_property
    def _rows(self) -> dict[str, tuple[Row, ModuleType]]:
        rows: dict[str, tuple[Row, ModuleType]] = {}
        for module in self._modules():
            for row in vars(module).values():
                if not isinstance(row, self._kind) or rows.get(row.name, (None,))[0] is row:
                    continue
                if row.name in rows:
                    homes = f"{rows[row.name][1].__name__} and {module.__name__}"
                    raise ImportError(f"{self._room}: {homes} both declare {row.name!r}")
                rows[row.name] = row, module
        return rows

    def _modules(self) -> Iterator[ModuleType]:
        room = import_module(self._room)
        yield room
        for found in pkgutil.iter_modules(getattr(room, "__path__", ())):
            yield import_module(f"{self._room}.{found.name}")
        for entry in sorted(metadata.entry_points(group=self._room), key=lambda entry: entry.value):
            yield import_module(entry.module)
