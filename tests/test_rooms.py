"""The house: imports go down, a name is one file, rooms are not crowded, and generic rooms know no family."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sprunec"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "schemas" not in path.parts)
# From the ground up; what stands on one line may not import each other. A room is a folder, or a file beside `cli.py`.
FLOORS = (
    ("errors", "durable", "interrupts", "machine", "units", "registry"),
    ("unexpected", "file_kinds", "file_digests", "heap"),
    ("text_files",),
    ("checkpoint",),
    ("families",),
    ("data",),
    ("bmcook",),
    ("bmcook/data",),
    ("plan/search",),
    ("plan",),
    ("plan/advice",),
    ("engines/processes",),
    ("engines",),
    ("engines/distilling",),
    ("rewrite/ops",),
    ("rewrite",),
    ("models",),
    ("masks",),
    ("masks/search",),
    ("bmcook/masks",),
    ("mask_files",),
    ("formats",),
    ("graph",),
    ("passes",),
    ("passes/measuring",),
    ("passes/searching",),
    ("compiler",),
    ("execution",),
    ("show",),
    ("show/report",),
    ("bmcook/plans",),
    ("cli_flags", "cli_options"),
    ("cli_looks", "cli_reports"),
    ("cli", "__init__"),
    ("__main__",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
MOST_FILES, MOST_LINES = 18, 260
GENERIC = (
    *(
        "checkpoint",
        "data",
        "plan",
        "plan/search",
        "plan/advice",
        "engines/processes",
        "engines",
        "engines/distilling",
        "rewrite",
        "rewrite/ops",
        "models",
        "masks",
        "masks/search",
        "mask_files",
        "formats",
        "graph",
        "passes",
        "passes/measuring",
        "passes/searching",
    ),
    *("compiler", "execution", "show", "show/report"),
)
# What may: a format that only this family has, and the masks that every run writes in BMCook's keys.
OF_A_FAMILY = ("formats/cpm_live.py", "masks/mask_tensors.py")
# CPM-Ant's tensors and modules, what it puts in front of a text, and the keys of its config.
FAMILY_WORDS = re.compile(
    r"encoder\.layers|project_[qkv]|attention_out|\bw_in\b|\bw_out\b|\bw_[01]\b|layernorm|input_embedding|self_att|"
    r"\bffn\b|output_layernorm|(?<!packed_)(?<!add_generation_)prompt|segment|position_bias|dim_model|num_buckets|CPMAnt|CPM-Ant|cpm_ant"
)


def room_of(path: Path) -> str:
    inside = path.relative_to(PACKAGE)
    room = inside.parent.as_posix() if inside.parent.name else inside.stem
    return "families" if room.startswith("families/") else room


def imported_names(path: Path) -> list[str]:
    tree = ast.parse(path.read_text())
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names = []
    for node in (node for node in ast.walk(tree) if id(node) not in typing):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return [name for name in names if name.startswith("sprunec.")]


def imported(path: Path) -> set[str]:
    """The rooms that a file imports, wherever in the file that is."""
    files = [PACKAGE.parent / f"{name.replace('.', '/')}.py" for name in imported_names(path)]
    return {room_of(file) for file in files if file.is_file()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    room = room_of(path)
    up = {other for other in imported(path) - {room} if FLOOR_OF[other] >= FLOOR_OF[room]}
    assert not up, f"{room} imports {sorted(up)}, which stand on its floor or above"


def files_imported(path: Path) -> set[Path]:
    """The files that a file imports, in functions too; what only types need is not there at run time."""
    return {PACKAGE.parent / f"{name.replace('.', '/')}.py" for name in imported_names(path)} & set(FILES)


def test_no_files_import_each_other() -> None:
    above: dict[Path, set[Path]] = {path: files_imported(path) - {path} for path in FILES}
    while free := [path for path, others in above.items() if not others]:
        for path in free:
            del above[path]
        above = {path: others - set(free) for path, others in above.items()}
    assert sorted(str(path.relative_to(PACKAGE)) for path in above) == []


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in FILES} == set(FLOOR_OF)


def test_a_name_is_one_file() -> None:
    counted = Counter(path.name for path in FILES if path.name != "__init__.py")
    assert [name for name, count in counted.items() if count > 1] == []


def test_rooms_and_files_are_not_crowded() -> None:
    rooms = Counter(path.parent for path in FILES if path.name != "__init__.py")
    assert {str(room): count for room, count in rooms.items() if count > MOST_FILES} == {}
    lengths = {str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


@pytest.mark.parametrize(
    "path", [path for path in FILES if room_of(path) in GENERIC], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_a_generic_room_knows_no_family(path: Path) -> None:
    lines = enumerate(path.read_text().splitlines(), 1)
    found = [f"{number}: {word}" for number, line in lines for word in FAMILY_WORDS.findall(line)]
    assert bool(found) == (path.relative_to(PACKAGE).as_posix() in OF_A_FAMILY), found
