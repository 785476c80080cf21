"""Tables that grow by a file: passes, export formats, criteria.

    FORMATS = Registry(Format, "sprunec.formats")     the table of a room; read as any mapping, by name
    SPRUNEC = Format("sprunec", ...)                  in sprunec/formats/ours.py: one row, in the file that does it

Another package adds rows from modules of its own, by entry points in the group that is called as the room:

    [project.entry-points."sprunec.formats"]
    gguf = "sprunec_gguf.gguf"

An entry point has its row's name, and the row's schema, if it has one, stands beside the module (`gguf.schema.json`).
Tables are filled when they are first read, by importing the room's modules: these import no torch.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Generic, Protocol, TypeVar


class Named(Protocol):
    """What can be a row of a table."""

    @property
    def name(self) -> str: ...


Row = TypeVar("Row", bound=Named)


class Registry(Mapping[str, Row], Generic[Row]):
    """Rows by name: every instance of `kind` at the top level of a module of the room, its folders, or an entry point.

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

    def home(self, name: str) -> ModuleType:
        """Give the module that declares a row."""
        return self._rows[name][1]

    @cached_property
    def _rows(self) -> dict[str, tuple[Row, ModuleType]]:
        rows: dict[str, tuple[Row, ModuleType]] = {}
        room, others = import_module(self._room), added(self._room)
        found = pkgutil.walk_packages(getattr(room, "__path__", ()), f"{self._room}.")
        own = [module.name for module in found if not module.ispkg]
        for module in (room, *map(import_module, [*own, *others.values()])):
            for row in vars(module).values():
                if not isinstance(row, self._kind) or rows.get(row.name, (None,))[0] is row:
                    continue
                if row.name in rows:
                    homes = f"{rows[row.name][1].__name__} and {module.__name__}"
                    raise ImportError(f"{self._room}: {homes} both declare {row.name!r}")
                rows[row.name] = row, module
        for name, home in others.items():
            if name not in rows:
                raise ImportError(f"{self._room}: {home} declares no {name!r}, as its entry point says")
        return rows


@cache
def added(room: str) -> dict[str, str]:
    """Name the modules of the rows that other packages add, by the rows' names."""
    return {entry.name: entry.module for entry in sorted(metadata.entry_points(group=room))}


def added_schemas(room: str) -> dict[str, Path]:
    """Say where the schemas of such rows lie, by name; of those that have one."""
    specs = ((name, find_spec(module)) for name, module in added(room).items())
    paths = {name: Path(spec.origin).with_suffix(".schema.json") for name, spec in specs if spec and spec.origin}
    return {name: path for name, path in paths.items() if path.is_file()}
