"""Runs that go from file to file: nothing is copied that need not be, and nothing half done passes for done."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import sprunec
from sprunec.checkpoint import writer as writing
from sprunec.checkpoint.reader import read_state
from sprunec.checkpoint.writer import write_state
from sprunec.errors import ComparisonError, PassError
from sprunec.families.cpm_ant.blocks import build, initialize
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.file_digests import file_digest
from sprunec.rewrite import recipe as recipes
from sprunec.rewrite.recipe import Recipe
from tests.helpers.small_plans import EMIT, MODEL, TRAIN, artifact, execute, plan, read_report, write

SCORES = {"pass": "score-mask", "criterion": "random"}
CUTS = (
    SCORES | {"unit": "feed_forward", "target": {"num_feed_forward": 2}},
    SCORES | {"unit": "head", "target": {"num_heads": 3}},
    SCORES | {"unit": "dim_ff", "target": {"dim_ff": 20}},
)


def checkpoint(path: Path, **changes: Any) -> Path:
    model = build(ModelConfig.from_dict(MODEL | changes))
    initialize(model, 3)
    save_file(model.state_dict() | {"extra": torch.ones(2, dtype=torch.int64)}, path)
    return path


def cut(path: str | Path, *passes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    content = plan(*(passes or CUTS), EMIT, model={"config": MODEL, "checkpoint": str(path)}, **changes)
    return {key: value for key, value in content.items() if key not in ("data", "evaluate")}


def test_a_checkpoint_is_linked_not_copied_and_stays_as_it_is(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "mine.safetensors")
    before = path.read_bytes()
    content = plan(TRAIN, CUTS[1], TRAIN, EMIT, model={"config": MODEL, "checkpoint": path.name})
    execute(content, tmp_path)
    (link,) = artifact(tmp_path / "out", "load").glob("*.safetensors")
    assert link.is_symlink()
    assert link.resolve() == path
    assert path.read_bytes() == before
    emitted = tmp_path / "out" / "model" / "sprunec" / "model.safetensors"
    assert not emitted.is_symlink()
    assert "extra" not in load_file(emitted)


def test_a_plan_that_trains_nothing_has_no_expand_and_its_recipe_cuts_the_original(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "mine.safetensors")
    report = execute(cut(path), tmp_path)
    assert [entry["pass"] for entry in report["passes"]].count("compare") == 1
    assert "expand" not in {entry["pass"] for entry in report["passes"]}
    assert report["comparison"]["max_abs_difference"] < 1e-12
    recipe = Recipe.from_dict(json.loads((tmp_path / "out" / "recipe.json").read_text()))
    original = {name: tensor for name, tensor in load_file(path).items() if name != "extra"}
    wanted, found = recipe.cut(original), load_file(tmp_path / "out" / "model" / "sprunec" / "model.safetensors")
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    origins = [tmp_path / "out" / "store" / e["digest"] / "origin" for e in report["passes"] if e["pass"] == "rewrite"]
    assert len(origins) == 3
    assert all((place / "model.safetensors").resolve() == path for place in origins)


@pytest.mark.parametrize("form", ["shards", "pt"])
def test_every_form_of_a_checkpoint_gives_the_same_small_model(tmp_path: Path, form: str) -> None:
    single = checkpoint(tmp_path / "mine.safetensors")
    other = tmp_path / ("other.pt" if form == "pt" else "shards")
    if form == "pt":
        torch.save(load_file(single), other)
    else:
        other.mkdir()
        write_state(load_file(single), other, shard_bytes=20_000)
    for name, path in (("one", single), ("two", other)):
        execute(cut(path), tmp_path, name)
    one, two = (tmp_path / name / "model" / "sprunec" / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_checkpoint_that_has_moved_is_linked_again_and_one_that_changed_is_loaded_anew(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "mine.safetensors")
    first = execute(cut("mine.safetensors"), tmp_path)
    moved = path.rename(tmp_path / "moved.safetensors")
    again = execute(cut("moved.safetensors"), tmp_path)
    assert [e["digest"] for e in again["passes"]] == [e["digest"] for e in first["passes"]]
    assert artifact(tmp_path / "out", "load").joinpath("model.safetensors").resolve() == moved
    state = load_file(moved)
    save_file(state | {"input_embedding.weight": state["input_embedding.weight"] + 1}, moved)
    third = execute(cut("moved.safetensors"), tmp_path)
    assert third["passes"][0]["digest"] != first["passes"][0]["digest"]
    emitted = read_state(tmp_path / "out" / "model" / "sprunec")
    assert torch.equal(emitted["input_embedding.weight"], state["input_embedding.weight"] + 1)


def test_no_room_stops_the_run_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path / "mine.safetensors")
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(PassError, match=r"this run writes 0\.0 GB at least, and the disk of .* left; make room"):
        execute(cut(path), tmp_path)
    assert not list((tmp_path / "out").rglob("*"))
    monkeypatch.undo()
    assert execute(cut(path), tmp_path)["status"] == "done"


@pytest.mark.parametrize("layer", [0, 2])
def test_the_block_that_was_cut_wrong_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: int) -> None:
    """Two rows of one matrix change places: a slice in the wrong order."""
    path, name = checkpoint(tmp_path / "mine.safetensors"), f"encoder.layers.{layer}.ffn.ffn.w_in.w_0.weight"
    honest = recipes.make_recipe

    def wrong(*given: Any) -> Recipe:
        recipe = honest(*given)
        rows = recipe.slices[name][0]
        return Recipe({**recipe.slices, name: {0: (rows[1], rows[0], *rows[2:])}}, recipe.removed)

    monkeypatch.setattr(recipes, "make_recipe", wrong)
    with pytest.raises(ComparisonError, match=f"most in block {layer}") as found:
        execute(cut(path, CUTS[2]), tmp_path)
    assert found.value.metrics["worst_block"] == layer
    report = read_report(tmp_path / "out")
    assert report["status"] == "comparison-failed"
    assert report["comparison"]["worst_block"] == layer
    assert report["comparison"]["worst_block_difference"] > 1e-3
    assert not (tmp_path / "out" / "model").exists()


# --- kill -9 ---

WIDE = {"dim_model": 512, "num_heads": 8, "dim_head": 64, "dim_ff": 4096, "num_layers": 3}
WIDE_CUT = SCORES | {"unit": "dim_ff", "target": {"dim_ff": 2000}}


def command(folder: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "sprunec", "run", str(folder / "plan.json"), "--out", str(out), "--quiet"]


def whole(path: Path) -> bool:
    try:
        load_file(path)
    except (SafetensorError, FileNotFoundError, OSError):
        return False
    return True


def kill_and_look(folder: Path, out: Path, after: float, wanted: str) -> None:
    """What stands where results are looked for is what it should be, or is not there."""
    process = subprocess.Popen(command(folder, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()
    published = out / "model" / "sprunec" / "model.safetensors"
    assert not published.exists() or file_digest(published) == wanted
    for manifest in out.glob("store/*/manifest.json"):
        if not manifest.parent.name.startswith(("writing-", "damaged-")):
            files = json.loads(manifest.read_text())["files"]
            assert all(file_digest(manifest.parent / name) == digest for name, digest in files.items())
    for half in out.glob("store/writing-*/model.safetensors"):
        assert not whole(half) or file_digest(half) == wanted


def killed(folder: Path, moments: int) -> None:
    checkpoint(folder / "wide.safetensors", **WIDE)
    write(
        folder,
        cut("wide.safetensors", WIDE_CUT) | {"model": {"config": MODEL | WIDE, "checkpoint": "wide.safetensors"}},
    )
    started = time.perf_counter()
    subprocess.run(command(folder, folder / "reference"), check=True, stdout=subprocess.DEVNULL)
    length = time.perf_counter() - started
    wanted = file_digest(folder / "reference" / "model" / "sprunec" / "model.safetensors")
    draw = random.Random(0)
    for number in range(moments):
        out = folder / f"out{number % 3}"
        kill_and_look(folder, out, draw.uniform(0.3, 1.0) * length, wanted)
    for number in range(min(3, moments)):
        out = folder / f"out{number}"
        subprocess.run(command(folder, out), check=True, stdout=subprocess.DEVNULL)
        assert file_digest(out / "model" / "sprunec" / "model.safetensors") == wanted
        assert not list(out.glob("store/writing-*"))
        assert read_report(out)["status"] == "done"


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.slow
def test_a_killed_rewrite_leaves_nothing_wrong_and_is_finished_by_the_next_run(tmp_path: Path) -> None:
    killed(tmp_path, 1)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_twenty_kills_leave_nothing_wrong(tmp_path: Path) -> None:
    killed(tmp_path, 20)


def test_nothing_is_evaluated_unless_there_is_data(tmp_path: Path) -> None:
    checkpoint(tmp_path / "mine.safetensors")
    graph = sprunec.lower(sprunec.read_plan(write(tmp_path, cut("mine.safetensors"))))
    assert not {"evaluate", "expand", "data"} & {node.pass_ for node in graph.nodes}
