"""Tables of rows that are declared in files of their own, ours and other packages'."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import invalidate_caches
from pathlib import Path
from types import SimpleNamespace

import pytest

from sprunec.registry import Registry, added, added_schemas

ROW = "from types import SimpleNamespace\nROW = SimpleNamespace(name={!r})\n"


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of rows, and a place for other packages, on the path."""
    package = tmp_path / "a_room"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text(ROW.format("one"))
    monkeypatch.syspath_prepend(tmp_path)
    added.cache_clear()
    yield package
    added.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] in ("a_room", "outside")]:
        del sys.modules[name]


def add_package(folder: Path, row: str, entry: str = "far") -> None:
    """A package that is installed in `folder` and adds a row to the room."""
    (folder / "outside.py").write_text(ROW.format(row))
    about = folder / "outside-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[a_room]\n{entry} = outside\n")
    invalidate_caches()
    added.cache_clear()


def test_registry_lists_rows_of_the_room(room: Path) -> None:
    (room / "two.py").write_text(f"{ROW.format('two')}from a_room.one import ROW as AGAIN\n")
    rows = Registry(SimpleNamespace, "a_room")
    assert list(rows) == ["one", "two"] and rows["two"].name == "two" and rows.home("two").__name__ == "a_room.two"


def test_registry_takes_rows_of_one_module(room: Path) -> None:
    assert list(Registry(SimpleNamespace, "a_room.one")) == ["one"]


def test_registry_adds_rows_of_other_packages(room: Path) -> None:
    add_package(room.parent, "far")
    rows = Registry(SimpleNamespace, "a_room")
    assert list(rows) == ["one", "far"]
    assert added_schemas("a_room") == {}
    (room.parent / "outside.schema.json").write_text("{}")
    assert added_schemas("a_room") == {"far": room.parent / "outside.schema.json"}


def test_registry_refuses_a_name_declared_twice(room: Path) -> None:
    add_package(room.parent, "one", "one")
    with pytest.raises(ImportError, match=r"a_room: a_room\.one and outside both declare 'one'"):
        list(Registry(SimpleNamespace, "a_room"))


def test_registry_refuses_an_entry_point_without_its_row(room: Path) -> None:
    add_package(room.parent, "near")
    with pytest.raises(ImportError, match=r"a_room: outside declares no 'far', as its entry point says"):
        list(Registry(SimpleNamespace, "a_room"))
