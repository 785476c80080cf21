"""Types are checked alike whatever is installed beside: of packages that are extras mypy is told not to ask."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.test_rooms import FILES

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
NEEDED = {re.split(r"[><=\[;]", each)[0] for each in PROJECT["project"]["dependencies"]} | {
    "sprunec",
    "jinja2",
}  # which torch needs
LEFT_ALONE = [
    pattern
    for rule in PROJECT["tool"]["mypy"]["overrides"]
    if rule.get("ignore_missing_imports")
    for pattern in rule["module"]
]


def packages(path: Path) -> set[str]:
    """What a file imports, anywhere in it, that comes with no Python."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
    return {name.split(".")[0] for name in found} - sys.stdlib_module_names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_not_always_there_has_no_types(path: Path) -> None:
    asked = packages(path) - NEEDED
    assert {name for name in asked if not any(fnmatch(f"{name}.x", pattern) for pattern in LEFT_ALONE)} == set()


@pytest.mark.parametrize("name", ["gguf", "llama_cpp", "peft", "lm_eval", "tokenizers"])
def test_extras_are_among_what_files_import(name: str) -> None:
    assert any(name in packages(path) for path in FILES)
