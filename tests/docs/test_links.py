"""The README and the pages in docs/ hold together: links lead somewhere, and commands are those that are checked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.md")])
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```$|^ {4}.*$", re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub names them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def fenced(page: Path, mark: str) -> str:
    """The fenced block behind a mark, as `.ci/run` reads it."""
    found = re.search(rf"^<!-- {mark} -->$.*?^```\w*\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None, f"{page.name} has no block {mark}"
    return found[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    for link in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        path, _, heading = link.partition("#")
        if "://" in link:
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        assert not heading or heading in anchors(target), f"{link}: no such heading"


def test_every_page_is_reached_from_the_readme() -> None:
    reached, pending = set(), [ROOT / "README.md"]
    while pending:
        page = pending.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        links = (link.partition("#")[0] for link in _LINK.findall(page.read_text(encoding="utf-8")))
        pending += [(page.parent / link).resolve() for link in links if link and "://" not in link]
    assert {page for page in PAGES if page.parent.name == "docs"} <= reached


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 9000


def test_readme_shows_a_shipped_plan() -> None:
    blocks = re.findall(r"^```json\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert [json.loads(block) for block in blocks] == [json.loads((ROOT / "plans/cpm-ant-1b-to-300m.json").read_text())]


def test_one_command_checks_what_the_readme_tests() -> None:
    (command,) = [
        line for line in fenced(ROOT / "README.md", "tests").splitlines() if line.startswith("python -m pytest")
    ]
    check = (ROOT / "check").read_text()
    assert f"set -- {command.removeprefix('python -m pytest ')}\n" in check
    assert [line for line in check.splitlines() if line in ("ruff check .", "ruff format --check .", "mypy")]
    assert "./check" in (ROOT / "CONTRIBUTING.md").read_text()


def test_readme_runs_the_quickstart() -> None:
    assert fenced(ROOT / "README.md", "quickstart").splitlines() == [
        "pip install .",
        "sprunec run plans/quickstart.json",
    ]
