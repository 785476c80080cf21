"""A byte that flips in any file of OUT, and what does not belong there: seen when the file is used, and put right."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sprunec
from sprunec.errors import InputError
from sprunec.execution.events import read_line
from sprunec.execution.manifest import read_manifest
from sprunec.execution.progress import Watcher
from sprunec.show.report.page import write_html
from tests.helpers.small_plans import EMIT, TRAIN, mask_pass, plan, read_report, write

TIMED = {"report.json", "report.html", "report.md", "manifest.json", ".lock", "origin.json"}
PLAN = plan(
    TRAIN,
    mask_pass("head", {"num_heads": 3}, steps=4, budget="global", save_mask="out/heads.pt"),
    {"pass": "finetune", "steps": 2},
    EMIT,
    outputs={"checkpoint": "whole.pt"},
)


class Hears(Watcher):
    def __init__(self) -> None:
        self.heard: list[str] = []
        self.made: list[str] = []

    def message(self, text: str) -> None:
        self.heard.append(text)

    def node_finished(self, index: int, total: int, name: str, *, cached: bool, **_: Any) -> None:
        self.made += [] if cached else [name]


def run(directory: Path) -> Hears:
    watcher = Hears()
    graph = sprunec.lower(sprunec.read_plan(write(directory, PLAN)))
    assert sprunec.execute(graph, directory / "out", watcher).status in ("done", "target-missed")
    write_html(directory / "out")
    return watcher


def contents(out: Path) -> dict[str, str]:
    """Of every file that two runs must have alike; events come from the first run that made them."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and "damaged-" not in str(path))
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name not in TIMED and "events" not in path.name
    }


def verify(out: Path) -> None:
    """Everything that says about itself what it should be is that."""
    for path in out.glob("store/*/manifest.json"):
        manifest = read_manifest(path.parent, path.parent.name)
        assert manifest is not None, path
        for name, digest in manifest["files"].items():
            assert hashlib.sha256((path.parent / name).read_bytes()).hexdigest() == digest
        if manifest["events"] is not None:
            events = out / "store" / f"events-{path.parent.name}.jsonl"
            assert hashlib.sha256(events.read_bytes()).hexdigest() == manifest["events"]
    lines = (out / "events.jsonl").read_text().splitlines()
    assert all(read_line(line) for line in lines)
    assert len(lines) == 2 + 4 + 2
    json.loads((out / "report.json").read_text())
    assert "</html>" in (out / "report.html").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    run(directory)
    return directory


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy", symlinks=True)


def files_of(out: Path) -> list[Path]:
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and "damaged-" not in str(path))
    return [path for path in files if path.stat().st_size]


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def kinds(out: Path) -> Iterator[Path]:
    """One file of each name."""
    yield from {path.name.split("-")[0]: path for path in files_of(out)}.values()


def flips(whole: Path, copy: Path, chosen: list[Path], draw: random.Random) -> None:
    wanted = contents(whole / "out")
    verify(whole / "out")
    for path in chosen:
        flip(path, draw)
        watcher = run(copy)
        assert contents(copy / "out") == wanted, path
        verify(copy / "out")
        if path.parent.parent.name == "store" or path.name.startswith("events-"):
            assert any("damaged" in line for line in watcher.heard), path
        elif "store" not in path.parts:
            assert not watcher.heard and not watcher.made
        for damaged in (copy / "out/store").glob("damaged-*"):
            shutil.rmtree(damaged)


def test_a_flipped_byte_in_one_file_of_each_kind_is_repaired_by_running_again(whole: Path, copy: Path) -> None:
    flips(whole, copy, list(kinds(copy / "out")), random.Random(1))


@pytest.mark.slow
def test_two_hundred_flipped_bytes_are_repaired_by_running_again(whole: Path, copy: Path) -> None:
    draw = random.Random(2)
    flips(whole, copy, draw.choices(files_of(copy / "out"), k=200), draw)


@pytest.mark.parametrize(("old", "new"), [('"parameters": ', '"parameters": 1'), ('\n "kind"', '\n\t"kind"')])
def test_a_manifest_that_is_still_json_but_not_what_was_written_is_damaged(old: str, new: str, copy: Path) -> None:
    entry = next(e for e in read_report(copy / "out")["passes"] if e["pass"] == "load")
    path = copy / "out/store" / entry["digest"] / "manifest.json"
    content = path.read_text()
    path.write_text(content.replace(old, new, 1))
    assert path.read_text() != content
    assert isinstance(json.loads(path.read_text().replace("\t", " ")), dict)
    assert run(copy).made == [entry["name"]]


def test_a_flipped_byte_is_not_trained_away(whole: Path, copy: Path) -> None:
    """Damage to one artifact costs that pass again, and no other."""
    entry = next(e for e in read_report(copy / "out")["passes"] if e["pass"] == "train-mask")
    flip(copy / "out/store" / entry["digest"] / "model.safetensors", random.Random(3))
    watcher = run(copy)
    assert watcher.made == [entry["name"]]
    assert "its artifact is damaged, and is made again; what was there is now in" in watcher.heard[0]


def test_strays_are_set_aside_and_links_are_not_followed(whole: Path, copy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept.json").write_text("mine")
    (outside / "step-000000001-00000000000000000000000000000000.pt").write_text("mine")
    out, entries = copy / "out", {e["pass"]: e["digest"] for e in read_report(copy / "out")["passes"]}
    emitted = out / "store" / entries["emit"]
    (emitted / "sprunec/__pycache__").mkdir()
    (emitted / "sprunec/__pycache__/model.pyc").write_text("evil")
    (emitted / "other").symlink_to(outside)
    (out / "store/foreign").write_text("a stray")
    shutil.rmtree(out / "store" / entries["train"])
    (out / "store" / entries["train"]).symlink_to(outside)
    (out / "store" / f"partial-{entries['train']}").symlink_to(outside)
    for name in ("events.jsonl", "report.json", "recipe.json", "report.html", "whole.pt"):
        (out / name).unlink()
        (out / name).symlink_to(outside / name)
    shutil.rmtree(out / "model")
    (out / "model").symlink_to(outside)
    before = {path.name: path.read_bytes() for path in outside.iterdir()}
    run(copy)
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == before
    (out / "store/foreign").unlink()
    assert contents(out) == contents(whole / "out")
    assert not any(path.is_symlink() for path in out.rglob("*") if "damaged-" not in str(path))
    assert not (out / "model/sprunec/__pycache__").exists()


def test_a_lock_that_is_a_link_does_not_empty_another_file(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    (copy / "out/.lock").unlink()
    (copy / "out/.lock").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="cannot be written to"):
        run(copy)
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize("name", ["../../mine", "/etc/hostname", "a/../../../mine", "", "."])
def test_a_manifest_that_names_files_elsewhere_is_damaged(name: str, copy: Path) -> None:
    """Though its own hash fits: whoever can write it can hash it."""
    from sprunec.execution.manifest import hashed

    entry = next(e for e in read_report(copy / "out")["passes"] if e["pass"] == "binarize")
    place = copy / "out/store" / entry["digest"]
    manifest = read_manifest(place, entry["digest"])
    assert manifest is not None
    manifest["files"][name] = "0" * 64
    (place / "manifest.json").write_text(hashed(manifest))
    assert read_manifest(place, entry["digest"]) is None
    assert run(copy).made == [entry["name"]]


def test_an_artifact_under_anothers_name_is_damaged(copy: Path) -> None:
    entries = {
        e["name"]: e["digest"] for e in read_report(copy / "out")["passes"] if e["pass"] in ("train", "finetune")
    }
    (first, one), (_, other) = entries.items()
    store = copy / "out/store"
    shutil.rmtree(store / one)
    shutil.copytree(store / other, store / one)
    assert run(copy).made == [first]


@pytest.mark.parametrize("what", ["no manifest", "a file", "a pipe as its manifest", "an empty folder"])
def test_what_only_looks_like_an_artifact_does_not_stop_a_run_for_good(what: str, whole: Path, copy: Path) -> None:
    entry = next(e for e in read_report(copy / "out")["passes"] if e["pass"] == "binarize")
    place = copy / "out/store" / entry["digest"]
    if what in ("a file", "an empty folder"):
        shutil.rmtree(place)
        place.write_text("x") if what == "a file" else place.mkdir()
    else:
        (place / "manifest.json").unlink()
    if what == "a pipe as its manifest":
        os.mkfifo(place / "manifest.json")
    assert run(copy).made == [entry["name"]]
    assert contents(copy / "out") == contents(whole / "out")


def test_events_come_back_from_the_store(whole: Path, copy: Path) -> None:
    lines = (copy / "out/events.jsonl").read_text()
    (copy / "out/events.jsonl").unlink()
    run(copy)
    assert (copy / "out/events.jsonl").read_text() == lines
