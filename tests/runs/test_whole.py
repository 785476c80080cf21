"""Whole runs of small plans, through the command line and from Python."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sprunec
from sprunec.execution.progress import Watcher
from sprunec.plan.schema import validator
from tests.helpers.small_plans import EMIT, MODEL, TRAIN, artifact, execute, guide, mask_pass, plan, read_report, write

# --- what a run leaves ---


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    report = read_report(finished)
    validator("report").validate(report)
    assert report["status"] == "target-missed"  # three steps settle nothing, and the run says so
    assert {path.name for path in (finished / "model" / "sprunec").iterdir()} >= {"config.json", "model.py"}
    assert sorted(path.name for path in (finished / "masks").iterdir()) == [
        "dim_head_mask.pt",
        "dimff_mask.pt",
        "head_mask.pt",
        "layer_mask.pt",
    ]
    events = [json.loads(line) for line in (finished / "events.jsonl").read_text().splitlines()]
    assert [event["model_steps"] for event in events] == list(range(1, 13))
    assert {"budgets", "undecided"} <= events[3].keys()
    masks = torch.load(finished / "masks" / "head_mask.pt", weights_only=True)["heads_z"]
    assert [row.nonzero().flatten().tolist() for row in masks] == [
        report["kept"]["attention"][str(layer)] or [] for layer in range(3)
    ]


def test_masked_equals_small_with_other_heads_in_other_layers(finished: Path) -> None:
    report = read_report(finished)
    kept = report["kept"]["attention"]
    assert len({str(heads) for heads in kept.values()}) == 3
    assert sum(len(heads or ()) for heads in kept.values()) == 9
    assert sum(count or 0 for count in report["kept"]["feed_forward"].values()) == 60
    assert report["comparison"]["max_abs_difference"] <= 1e-9
    assert report["comparison"]["float32_difference"] <= 1e-5
    assert report["models"]["masked"]["loss"] == pytest.approx(report["models"]["small"]["loss"], abs=1e-5)
    assert report["models"]["small"]["parameters"] < report["models"]["dense"]["parameters"]


def test_small_weights_are_slices_of_the_masked_ones(finished: Path) -> None:
    small = load_file(finished / "model" / "sprunec" / "model.safetensors")
    masked = load_file(artifact(finished, "expand") / "model.safetensors")
    entries = json.loads((finished / "recipe.json").read_text())["tensors"]
    cut = 0
    for name, entry in entries.items():
        if entry["kept"] is None:
            assert name not in small
            continue
        wanted = masked[name]
        for dim, runs in (entry["kept"] if entry["kept"] != "all" else {}).items():
            indices = [i for first, last in runs for i in range(first, last)]
            wanted = wanted.index_select(int(dim), torch.tensor(indices))
            cut += 1
        assert torch.equal(small[name], wanted)
    assert cut >= 15


def test_masks_written_are_masks_read(finished: Path, tmp_path: Path) -> None:
    """load-mask on the files of a run keeps what the run kept."""
    paths = [shutil.copy(path, tmp_path) for path in sorted((finished / "masks").glob("*.pt"))]
    names = [Path(path).name for path in paths]
    again = execute(plan(TRAIN, {"pass": "load-mask", "path": names}, EMIT), tmp_path)
    assert again["kept"] == read_report(finished)["kept"]
    assert again["status"] == "done"


# --- again ---


def test_a_second_run_does_nothing(finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    before = (out / "events.jsonl").read_bytes()
    report = execute(guide(), tmp_path)
    assert all(entry["cached"] for entry in report["passes"])
    assert (out / "events.jsonl").read_bytes() == before


def test_a_changed_option_reruns_what_follows(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "out")
    changed = guide()
    changed["passes"][3]["target"]["dim_ff"] = 16
    cached = {entry["name"]: entry["cached"] for entry in execute(changed, tmp_path)["passes"]}
    first = next(name for name, done in cached.items() if not done)
    assert first == "10-train-mask-dim_ff"
    assert list(cached.values()) == [True] * 9 + [False] * (len(cached) - 9)


def test_two_runs_of_one_plan_are_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    execute(guide(), tmp_path)
    for name in ("model.safetensors", "config.json", "model.py"):
        assert (tmp_path / "out/model/sprunec" / name).read_bytes() == (finished / "model/sprunec" / name).read_bytes()


def test_a_damaged_artifact_is_made_again(finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    weights = artifact(out, "rewrite") / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    report = execute(guide(), tmp_path)
    assert [entry["pass"] for entry in report["passes"] if not entry["cached"]] == ["rewrite"]
    assert weights.read_bytes() != bytes(data)


class StopsAt(Watcher):
    """Presses Ctrl-C at a training step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def step(self, event: Any) -> None:
        self.left -= "loss" in event
        if self.left == 0:
            raise KeyboardInterrupt


def test_an_interrupted_run_continues(finished: Path, tmp_path: Path) -> None:
    graph = sprunec.lower(sprunec.read_plan(write(tmp_path, guide())))
    with pytest.raises(KeyboardInterrupt):
        sprunec.execute(graph, tmp_path / "out", StopsAt(7))
    assert read_report(tmp_path / "out")["status"] == "interrupted"
    report = execute(guide(), tmp_path)
    assert [entry["cached"] for entry in report["passes"]].count(True) == 8
    emitted = tmp_path / "out/model/sprunec/model.safetensors"
    assert emitted.read_bytes() == (finished / "model/sprunec/model.safetensors").read_bytes()
    assert (tmp_path / "out/events.jsonl").read_text().count("\n") == 12


# --- every unit and target ---


UNITS: list[tuple[Any, dict[str, Any], str]] = [
    ("head", {"num_heads": 3}, "per-layer"),
    ("dim_head", {"dim_head": 5}, "per-layer"),
    ("dim_head", {"dim_head": 5}, "global"),
    ("dim_ff", {"dim_ff": 20}, "per-layer"),
    ("attention", {"num_attention": 1}, "global"),
    ("feed_forward", {"num_feed_forward": 2}, "global"),
    ("block", {"num_layers": 2}, "global"),
    ("layer", {"sparsity": 0.5}, "global"),
    ("head", {"sparsity": 0.5}, "global"),
    (["head", "dim_ff"], {"num_heads": 2, "dim_ff": 10}, "per-layer"),
    (["attention", "head"], {"num_attention": 2, "num_heads": 3}, "global"),
    (["layer", "head", "dim_ff"], {"num_attention": 2, "num_feed_forward": 1, "num_heads": 3, "dim_ff": 9}, "global"),
    (["attention", "feed_forward", "head", "dim_head", "dim_ff"], {"parameters": 30000}, "global"),
]


@pytest.mark.parametrize(("unit", "target", "budget"), UNITS, ids=lambda value: str(value))
@pytest.mark.slow
def test_every_unit_reaches_its_target(unit: Any, target: dict[str, Any], budget: str, tmp_path: Path) -> None:
    content = plan(TRAIN, mask_pass(unit, target, budget=budget), EMIT, evaluate={"tokens": 60})
    report = execute(content, tmp_path)
    kept = report["kept"]
    counted = {
        "num_attention": sum(heads is not None for heads in kept["attention"].values()),
        "num_feed_forward": sum(dims is not None for dims in kept["feed_forward"].values()),
        "num_heads": sum(len(heads or ()) for heads in kept["attention"].values()),
        "dim_ff": sum(dims or 0 for dims in kept["feed_forward"].values()),
    }
    for row in report["budgets"]:
        assert row["got"] == counted.get(row["name"], row["got"])
        assert row["got"] <= row["target"]
        assert row["got"] == row["target"] or "sparsity" in target or "parameters" in target
    assert report["comparison"]["max_abs_difference"] <= 1e-9
    if "parameters" in target:
        smallest = 3 * MODEL["dim_model"]
        assert 30000 - smallest < report["models"]["small"]["parameters"] <= 30000


@pytest.mark.parametrize("criterion", ["random", "magnitude", "taylor"])
def test_scores_cut_without_training(criterion: str, tmp_path: Path) -> None:
    scored = {"pass": "score-mask", "criterion": criterion, "unit": "head", "target": {"num_heads": 3}}
    report = execute(plan(TRAIN, scored, EMIT), tmp_path)
    assert sum(len(heads or ()) for heads in report["kept"]["attention"].values()) == 3 * 3
    report = execute(plan(TRAIN, scored | {"budget": "per-layer"}, EMIT), tmp_path)
    assert [len(heads) for heads in report["kept"]["attention"].values()] == [3, 3, 3]
    assert report["status"] == "done"


# --- text of one's own ---


@pytest.mark.parametrize("source", ["text", "jsonl"])
def test_own_text_is_learned_from(source: str, tmp_path: Path) -> None:
    lines = [f"line {number} says the same as line {number % 7}" for number in range(80)]
    rows = [json.dumps({"text": line}) for line in lines] if source == "jsonl" else lines
    (tmp_path / "mine").write_text("\n".join(rows))
    data = {"source": source, "path": "mine", "max_length": 34, "batch_size": 4, "held_out": 0.2}
    report = execute(plan({"pass": "train", "steps": 20, "learning_rate": 0.05}, data=data), tmp_path)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "out/events.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.5
    assert report["models"]["dense"]["loss"] < losses[0]


# --- a checkpoint goes in as it came out ---


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_checkpoint_goes_in(finished: Path, tmp_path: Path, suffix: str) -> None:
    state = load_file(artifact(finished, "load") / "model.safetensors")
    path = tmp_path / f"dense{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        shutil.copy(artifact(finished, "load") / "model.safetensors", path)
    scored = {"pass": "score-mask", "criterion": "magnitude", "unit": "head", "target": {"num_heads": 3}}
    content = plan(scored, EMIT, model={"config": MODEL, "checkpoint": path.name})
    del content["data"], content["evaluate"]
    report = execute(content, tmp_path)
    assert report["models"]["small"]["loss"] is None  # nothing was asked to be evaluated
    assert report["models"]["small"]["parameters"] < report["models"]["dense"]["parameters"]
    small = load_file(tmp_path / "out/model/sprunec/model.safetensors")
    rows = small["encoder.layers.0.self_att.self_attention.project_q.weight"]
    wanted = state["encoder.layers.0.self_att.self_attention.project_q.weight"].unflatten(0, (8, 8))
    assert torch.equal(rows.unflatten(0, (-1, 8)), wanted[report["kept"]["attention"]["0"]])
