"""Plans that write their masks, and plans that read them: real runs of a small model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sprunec
from sprunec.bmcook.masks import mask_forms as files
from sprunec.checkpoint.provenance import read_provenance
from sprunec.errors import InputError, PassError
from sprunec.execution.progress import Watcher
from sprunec.families.model_directory import read_kept
from tests.helpers.small_plans import EMIT, MODEL, TRAIN, artifact, execute, mask_pass, plan, read_report, write

HOLED = MODEL | {"num_layers": 4, "mask_modules": [[False, False], [True, False], [False, True], [False, False]]}


def score(unit: Any, target: dict[str, Any], save: str | None = None, **options: Any) -> dict[str, Any]:
    entry = {"pass": "score-mask", "criterion": "random", "unit": unit, "target": target, **options}
    return entry if save is None else entry | {"save_mask": save}


def load(*paths: str) -> dict[str, Any]:
    return {"pass": "load-mask", "path": list(paths)}


def dry(*passes: dict[str, Any], checkpoint: str = "weights.pt", **changes: Any) -> dict[str, Any]:
    """A plan without data: it chooses, cuts and compares, and trains nothing."""
    content = plan(*passes, model={"config": HOLED, "checkpoint": checkpoint}, **changes)
    return {key: value for key, value in content.items() if key not in ("data", "evaluate")}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of the holed model."""
    directory = tmp_path_factory.mktemp("weights")
    content = plan(EMIT, model={"config": HOLED})
    execute({key: value for key, value in content.items() if key not in ("data", "evaluate")}, directory)
    torch.save(load_file(directory / "out/model/sprunec/model.safetensors"), directory / "weights.pt")
    return directory


@pytest.fixture
def here(weights: Path, tmp_path: Path) -> Path:
    shutil.copyfile(weights / "weights.pt", tmp_path / "weights.pt")
    return tmp_path


def opened(path: Path) -> dict[str, torch.Tensor]:
    content: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return content


def test_the_guides_masks_are_written_a_file_a_pass_and_read_in_any_order(here: Path) -> None:
    """Layers, then heads with a row per attention that is left, then dims: as BMCook's three files are counted."""
    first = execute(
        dry(
            score("layer", {"num_attention": 2, "num_feed_forward": 2}, "m/layers.pt"),
            score("head", {"num_heads": 3}, "m/heads.pt", budget="global"),
            score(["dim_head", "dim_ff"], {"dim_head": 5, "dim_ff": 20}, "m/dims.pt"),
        ),
        here,
    )
    layers, heads, dims = (opened(here / f"m/{name}.pt") for name in ("layers", "heads", "dims"))
    shapes = {key: tuple(rows.shape) for key, rows in (layers | heads | dims).items()}
    assert shapes == {
        "self_att_layer_z": (3,),
        "cross_att_layer_z": (0,),
        "ffn_layer_z": (3,),
        "heads_z": (2, 8),
        "dim_head_z": (2, 8),
        "dimff_z": (2, 48),
    }
    assert (layers["self_att_layer_z"].sum(), layers["ffn_layer_z"].sum()) == (2, 2)
    assert heads["heads_z"].sum() == 6
    for names in (["layers", "heads", "dims"], ["dims", "heads", "layers"]):
        again = execute(dry(load(*(f"m/{name}.pt" for name in names))), here, "again")
        assert again["kept"] == first["kept"]
        assert again["comparison"]["max_abs_difference"] < 1e-12
    one_by_one = execute(dry(load("m/layers.pt"), load("m/heads.pt"), load("m/dims.pt")), here, "again")
    assert one_by_one["kept"] == first["kept"]


def test_every_form_loads_to_the_same_model(here: Path) -> None:
    units = (("head", "num_heads", 3), ("dim_ff", "dim_ff", 11))
    for unit, key, count in units:
        for form in ("bmcook", "plugin"):
            execute(dry(score(unit, {key: count}, f"{form}-{unit}.pt", mask_form=form, budget="per-layer")), here)
    kept = [execute(dry(load(f"{f}-head.pt", f"{f}-dim_ff.pt")), here)["kept"] for f in ("bmcook", "plugin")]
    assert kept[0] == kept[1]
    assert [len(heads) for heads in kept[0]["attention"].values() if heads] == [3, 3, 3]
    target = {"num_attention": 1, "num_feed_forward": 2}
    names = {"bmcook": "b.pt", "plugin": "p.pt", "mask_modules": "m.json"}
    for form, name in names.items():
        execute(dry(score("layer", target, name, mask_form=form)), here)
    layers = [execute(dry(load(name)), here)["kept"] for name in names.values()]
    assert layers[0] == layers[1] == layers[2]
    assert sum(heads is not None for heads in layers[0]["attention"].values()) == 1


def test_what_was_written_is_what_the_store_keeps(tmp_path: Path) -> None:
    content = plan(TRAIN, mask_pass("head", {"num_heads": 3}, budget="global", save_mask="h.pt"))
    execute(content, tmp_path)
    kept = read_kept(artifact(tmp_path / "out", "binarize"))
    rows = opened(tmp_path / "h.pt")["heads_z"]
    assert rows.dtype == torch.float32
    assert [tuple(row.nonzero().flatten().tolist()) or None for row in rows] == [layer.get("head") for layer in kept]


def test_where_a_mask_is_written_is_no_part_of_what_is_made(here: Path) -> None:
    def digests(*options: Any) -> list[str | None]:
        content = dry(score("head", {"num_heads": 3}, *options))
        return [node.digest for node in sprunec.lower(sprunec.read_plan(write(here, content))).nodes]

    assert digests("a/h.pt") == digests("b.pt") == digests()


def test_a_run_that_stops_before_the_end_of_the_pass_leaves_the_old_file(tmp_path: Path) -> None:
    class Watches(Watcher):
        steps, names = 0, ""

        def node_started(self, index: int, total: int, name: str) -> None:
            self.names += name

        def step(self, event: Any) -> None:
            self.steps += 1

    (tmp_path / "h.pt").write_bytes(b"old")
    content = plan(TRAIN, mask_pass("head", {"num_heads": 3}, save_mask="h.pt"))
    graph = sprunec.lower(sprunec.read_plan(write(tmp_path, content)))
    for stops in (lambda w: w.steps >= 4, lambda w: "binarize" in w.names):
        watcher = Watches()
        with pytest.raises(KeyboardInterrupt):
            sprunec.execute(graph, tmp_path / "out", watcher, lambda w=watcher, s=stops: s(w))
        written = (tmp_path / "h.pt").read_bytes() != b"old"
        assert written == ("binarize" in watcher.names)
        assert (tmp_path / "h.pt.json").exists() == written
    assert opened(tmp_path / "h.pt")["heads_z"].shape == (3, 8)


def test_a_run_again_leaves_its_files_alone_and_makes_those_that_are_gone(here: Path) -> None:
    content = dry(score("head", {"num_heads": 3}, "h.pt"))
    execute(content, here)
    before = (here / "h.pt").read_bytes()
    for name in ("h.pt", "h.pt.json"):
        os.utime(here / name, ns=(1, 1))
    assert all(entry["cached"] for entry in execute(content, here)["passes"])
    assert [(here / name).stat().st_mtime_ns for name in ("h.pt", "h.pt.json")] == [1, 1]
    (here / "h.pt").unlink()
    assert all(entry["cached"] for entry in execute(content, here)["passes"])
    assert (here / "h.pt").read_bytes() == before


def test_a_mask_that_cannot_be_written_fails_the_run_and_loses_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    (here / "h.pt").write_bytes(b"old")
    content = dry(score("head", {"num_heads": 3}, "h.pt"))
    with monkeypatch.context() as patch:
        patch.setattr(files, "put_file", full)
        with pytest.raises(PassError, match=r"\d-binarize: .*h\.pt cannot be written: No space left on device"):
            execute(content, here)
    assert read_report(here / "out")["status"] == "failed"
    assert (here / "h.pt").read_bytes() == b"old"
    report = execute(content, here)
    assert report["status"] == "done"
    assert next(entry for entry in report["passes"] if entry["pass"] == "binarize")["cached"]
    assert opened(here / "h.pt")["heads_z"].shape == (3, 8)


def test_a_mask_below_a_file_is_refused_before_any_work(here: Path) -> None:
    (here / "m").write_text("a file where a folder should be")
    with pytest.raises(InputError, match=r"m/h\.pt: error: cannot be written: .*/m is no folder"):
        execute(dry(score("head", {"num_heads": 3}, "m/h.pt")), here)
    assert not (here / "out").exists()


@pytest.mark.parametrize("path", ["out/masks/head_mask.pt", "out/store/h.pt", "out/report.json", "out"])
def test_a_mask_is_not_written_over_the_runs_own_files(path: str, here: Path) -> None:
    with pytest.raises(InputError, match=f"{path}: error: is where the run in"):
        execute(dry(score("head", {"num_heads": 3}, path)), here)
    assert not (here / "out").exists()


def test_an_applied_layer_mask_is_noted_also_when_the_pass_was_done_before(here: Path) -> None:
    values = {"self_att_layer_z": torch.tensor([1.0, 0, 1, 1]), "ffn_layer_z": torch.tensor([1.0, 1, 1, 0])}
    torch.save(values, here / "coarse.pt")
    noted: list[Any] = []

    class Listens(Watcher):
        def node_finished(self, *arguments: Any, metrics: Any, **named: Any) -> None:
            noted.extend(metrics.get("notes", []))

    content = dry(load("coarse.pt"))
    for _ in range(2):
        graph = sprunec.lower(sprunec.read_plan(write(here, content)))
        report = sprunec.execute(graph, here / "out", Listens()).data
    words = "coarse.pt was applied already: it keeps 3 and 3 of 4 and 4 sublayers, and so many are left"
    assert noted == [words, words]
    (entry,) = (entry for entry in report["passes"] if entry["pass"] == "load-mask")
    assert (entry["cached"], entry["metrics"]["notes"]) == (True, [words])
    assert report["models"]["small"]["parameters"] == report["models"]["dense"]["parameters"]


# --- masks and the weights that they were learned with ---


@pytest.fixture(scope="module")
def learned(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a plan has trained a mask, and the weights with it, from a checkpoint."""
    directory = tmp_path_factory.mktemp("learned")
    shutil.copyfile(weights / "weights.pt", directory / "weights.pt")
    content = plan(
        mask_pass("head", {"num_heads": 3}, save_mask="h.pt"),
        model={"config": HOLED, "checkpoint": "weights.pt"},
        outputs={"checkpoint": "full.pt"},
    )
    execute(content, directory)
    return directory


def loads(checkpoint: str) -> dict[str, Any]:
    return dry(load("h.pt"), checkpoint=checkpoint)


def notes(report: dict[str, Any]) -> list[str]:
    return [note for entry in report["passes"] for note in entry["metrics"].get("notes", [])]


def test_a_mask_with_the_weights_from_before_it_is_warned_of_and_changes_nothing(learned: Path) -> None:
    report = execute(loads("weights.pt"), learned, "again")
    (note,) = notes(report)
    assert note == (
        f"h.pt: masks learned together with other weights: {learned / 'out/full.pt'} holds them; "
        "this run starts from the weights from before"
    )
    (learned / "h.pt.json").rename(learned / "aside")
    try:
        silent = execute(loads("weights.pt"), learned, "again")
    finally:
        (learned / "aside").rename(learned / "h.pt.json")
    assert notes(silent) == []
    assert [entry["digest"] for entry in silent["passes"]] == [entry["digest"] for entry in report["passes"]]
    assert all(entry["cached"] for entry in silent["passes"])
    assert notes(execute(loads("weights.pt"), learned, "again")) == [note]


@pytest.mark.parametrize("source", ["out/full.pt", "copied.pt"])
def test_a_mask_with_its_own_weights_is_not_warned_of(source: str, learned: Path) -> None:
    shutil.copyfile(learned / "out/full.pt", learned / "copied.pt")
    assert notes(execute(loads(source), learned, "again")) == []


def test_a_mask_that_was_chosen_without_training_is_not_warned_of(here: Path) -> None:
    execute(dry(score("head", {"num_heads": 3}, "h.pt")), here)
    assert notes(execute(loads("weights.pt"), here, "again")) == []


def test_the_note_names_the_weights_that_the_run_has_written(learned: Path) -> None:
    note: Callable[[str], Any] = (read_provenance(learned / "h.pt") or {}).get
    assert (note("unit"), note("target"), note("start_step"), note("steps")) == (["head"], {"num_heads": 3}, 0, 3)
    assert learned / "out/full.pt" == (learned / str(note("weights_file"))).resolve()
    assert note("checkpoint") != note("weights")
