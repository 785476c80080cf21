"""Whole runs that distil: masks and recovery under a teacher, cut states, projections, a stop in the middle."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import sprunec
from sprunec.data.batches import IGNORED
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.models.loading import load_model
from sprunec.passes.job import Job
from tests.helpers.small_plans import EMIT, TRAIN, artifact, execute, mask_pass, plan, read_report, write
from tests.test_cli import run

HALF = {"distillation": {"logits": 0.5}}
PAIRS = [
    "[post]encoder.output_layernorm:[post]encoder.output_layernorm",
    "[pre]encoder.layers.1.ffn.layernorm_before_ffn:[pre]encoder.layers.1.ffn.layernorm_before_ffn",
    "[post]encoder.layers.2.self_att.self_attention.project_v:[post]encoder.layers.2.self_att.self_attention.project_v",
]
STATES = {"distillation": {"logits": 0.5, "temperature": 2, "hidden": 5, "project": True, "pairs": PAIRS}}


def events(out: Path, node: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["node"].endswith(node)]


def metrics(out: Path, pass_: str) -> list[dict[str, Any]]:
    return [entry["metrics"] for entry in read_report(out)["passes"] if entry["pass"] == pass_]


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of a run that learns its mask and recovers under half the teacher's probabilities."""
    directory = tmp_path_factory.mktemp("halved")
    passes = (TRAIN, mask_pass("head", {"num_heads": 3}) | HALF, {"pass": "finetune", "steps": 4} | HALF, EMIT)
    assert run("run", write(directory, plan(*passes)), "--out", directory / "out", "--quiet") in (0, 4)
    return directory / "out"


def test_a_run_learns_masks_and_recovers_under_its_dense_model(halved: Path) -> None:
    report = read_report(halved)
    assert report["status"] in ("done", "target-missed")
    assert report["comparison"]["max_abs_difference"] < 1e-5
    for pass_ in ("train-mask", "finetune"):
        told = events(halved, pass_ if pass_ == "finetune" else "train-mask-head")
        assert all(0 < event["distillation"] < 0.5 * math.log(128) + 0.5 for event in told)
        assert metrics(halved, pass_)[0]["distillation"] == told[-1]["distillation"]
    assert all("distillation" not in event for event in events(halved, "3-train"))


def test_what_a_run_says_it_distilled_is_the_cross_entropy_to_the_dense_model(halved: Path) -> None:
    """From the artifacts alone: the small model before its first step of recovery, against the one before the masks."""
    directory = halved.parent
    node = next(n for n in sprunec.lower(sprunec.read_plan(directory / "plan.json")).nodes if n.pass_ == "finetune")
    student, teacher = (load_model(artifact(halved, pass_)).eval() for pass_ in ("rewrite", "train"))
    job = Job(node.options, {"data": artifact(halved, "data")}, {}, directory, "cpu", print)
    config = ModelConfig.from_dict(json.loads((artifact(halved, "train") / "config.json").read_text()))
    batch = job.data(config).batch(node.options.first_step)
    asked = batch.targets != IGNORED
    with torch.no_grad():
        ours, theirs = (model(**batch.inputs)[0][asked] for model in (student, teacher))
    first = events(halved, "finetune")[0]
    assert first["loss"] == pytest.approx(float(F.cross_entropy(ours, batch.targets[asked])), rel=1e-5)
    assert first["distillation"] == pytest.approx(0.5 * float(F.cross_entropy(ours, theirs.softmax(-1))), rel=1e-5)


def test_the_page_draws_the_distillation_loss_of_its_passes_only(halved: Path) -> None:
    from sprunec.show.report.page import write_html

    page = write_html(halved).read_text()
    drawing = page.partition('aria-label="distillation loss over steps"')[2].partition("</svg>")[0]
    assert "9-finetune" in drawing
    assert "5-train-mask-head" in drawing
    assert "3-train" not in drawing


def states_plan(**training: Any) -> dict[str, Any]:
    passes = [TRAIN, mask_pass("head", {"num_heads": 3}, steps=6, budget="global") | STATES]
    return plan(*passes, {"pass": "finetune", "steps": 6} | STATES, EMIT, training={"checkpoint_every": 2} | training)


@pytest.mark.slow
def test_a_run_stopped_in_both_passes_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """Hidden states of gated blocks, then of cut ones, through projections, against a run that nothing stopped."""
    execute(states_plan(), tmp_path / "whole")
    graph = sprunec.lower(sprunec.read_plan(write(tmp_path, states_plan())))
    stops = []
    for node, step in (("5-train-mask-head", 3), ("9-finetune", 5)):
        told = tmp_path / "out/events.jsonl"

        def asked(node: str = node, step: int = step, told: Path = told) -> bool:
            return told.exists() and len(events(tmp_path / "out", node)) >= step

        with pytest.raises(KeyboardInterrupt):
            sprunec.execute(graph, tmp_path / "out", None, asked)
        stops.append(len(events(tmp_path / "out", node)))
    sprunec.execute(graph, tmp_path / "out")
    assert stops == [3, 5]
    for pass_ in ("train-mask", "finetune", "emit"):
        ours, theirs = (artifact(out, pass_) for out in (tmp_path / "out", tmp_path / "whole/out"))
        files = [path.relative_to(theirs) for path in theirs.rglob("*.safetensors")]
        assert files
        assert all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in files)
    assert not any("projection" in name for name in sprunec.load(tmp_path / "out/model/sprunec").state_dict())


def test_a_pair_whose_sublayer_is_gone_is_dropped_and_said(tmp_path: Path) -> None:
    pairs = [f"[post]encoder.layers.{i}.ffn.ffn:[post]encoder.layers.{i}.ffn.ffn" for i in range(3)]
    tune = {"pass": "finetune", "steps": 1, "distillation": {"hidden": 1, "pairs": pairs}}
    mask = mask_pass("feed_forward", {"num_feed_forward": 1})
    report = execute(plan(TRAIN, mask, tune, EMIT), tmp_path)
    kept = [layer for layer, width in report["kept"]["feed_forward"].items() if width]
    (tuned,) = metrics(tmp_path / "out", "finetune")
    gone = [
        f"{pairs[i]} is not distilled: encoder.layers.{i}.ffn.ffn has been cut" for i in range(3) if str(i) not in kept
    ]
    assert len(gone) == 2
    assert tuned["notes"] == gone
    assert tuned["distillation"] > 0


def test_a_teacher_from_a_file_is_listened_to(tmp_path: Path) -> None:
    """What counts is the file: the run's own dense model says something else."""
    execute(plan(TRAIN, {"pass": "train", "steps": 3}, EMIT), tmp_path / "first")
    state = load_model(artifact(tmp_path / "first/out", "load")).state_dict()
    save_file({name: tensor + 0.1 for name, tensor in state.items()}, tmp_path / "teacher.safetensors")
    given = {"distillation": {"logits": 0.5, "teacher": "teacher.safetensors"}}
    execute(
        plan(TRAIN | given, mask_pass("head", {"num_heads": 3}) | given, {"pass": "finetune", "steps": 1} | given),
        tmp_path,
    )
    execute(
        plan(TRAIN, mask_pass("head", {"num_heads": 3}) | HALF, {"pass": "finetune", "steps": 1} | HALF),
        tmp_path,
        "own",
    )
    out, own = tmp_path / "out", tmp_path / "own"
    assert [e["distillation"] > 0 for e in events(out, "-train")] == [True, True]
    names = [entry["name"] for entry in read_report(out)["passes"]]
    assert len([name for name in names if name.endswith("load-teacher")]) == 1
    assert events(out, "train-mask-head")[0]["distillation"] != events(own, "train-mask-head")[0]["distillation"]
