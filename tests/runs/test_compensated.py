"""Refitted weights through whole runs: the loss after a cut falls, and masked and small model still agree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sprunec import execute, lower, read_plan
from sprunec.checkpoint.reader import open_tensors
from sprunec.families.model_directory import read_kept
from sprunec.masks.least_squares import RIDGES
from sprunec.passes.compensate import TOKENS
from tests.helpers.small_plans import EMIT, artifact, plan, write

TRAIN = {"pass": "train", "steps": 150}
W_OUT = "encoder.layers.0.ffn.ffn.w_out.weight"
CUT = {"unit": ["head", "dim_ff"], "target": {"sparsity": 0.5}}


def report(folder: Path, *passes: dict[str, Any]) -> Any:
    """All plans share a folder, so the dense model is trained once."""
    content = plan(TRAIN, *passes, EMIT, training={"learning_rate": 0.02}, evaluate={"tokens": 4000})
    return execute(lower(read_plan(write(folder, content))), folder / "out").data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compensated")


@pytest.mark.parametrize("criterion", ["taylor", "activation", "reconstruction"])
def test_refitting_lowers_the_loss_of_a_cut_and_stays_exact(folder: Path, criterion: str) -> None:
    cut = {"pass": "score-mask", "criterion": criterion, **CUT}
    plain, refitted = report(folder, cut), report(folder, {**cut, "compensate": "least-squares"})
    assert refitted["kept"] == plain["kept"]
    losses = [found["models"]["small"]["loss"] for found in (plain, refitted)]
    dense = plain["models"]["dense"]["loss"]
    assert losses[1] - dense < 0.85 * (losses[0] - dense)
    assert refitted["comparison"]["max_abs_difference"] < 1e-9
    assert refitted["models"]["masked"]["loss"] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("rate", [0.5, 0.1], ids=["decided gates", "undecided gates"])
def test_what_is_left_after_learned_gates_takes_over_what_is_cut_and_does_not_shrink(folder: Path, rate: float) -> None:
    cut = {"pass": "train-mask", "steps": 60, "mask_learning_rate": rate, **CUT}
    plain, refitted = report(folder, cut), report(folder, {**cut, "compensate": "least-squares"})
    assert refitted["kept"] == plain["kept"]
    assert refitted["models"]["small"]["loss"] < plain["models"]["small"]["loss"] + 0.02
    assert refitted["comparison"]["max_abs_difference"] < 1e-9
    out = folder / "out"
    kept = list(read_kept(artifact(out, "rewrite"))[0].get("dim_ff", ()))
    before, after = (open_tensors(artifact(out, name))[W_OUT][:, kept] for name in ("train-mask", "compensate"))
    assert float((before * after).sum() / before.square().sum()) > 0.95


@pytest.mark.slow
def test_a_mask_that_was_learned_can_be_put_on_the_weights_that_entered(folder: Path, tmp_path: Path) -> None:
    """What stays is then a slice of the dense model, which can be refitted; so can a mask from a file."""
    cut = {"pass": "train-mask", "steps": 60, "weights": "original", **CUT}
    plain = report(folder, cut)
    dense = load_file(artifact(folder / "out", "train") / "model.safetensors")[W_OUT]
    small = load_file(folder / "out/model/sprunec/model.safetensors")[W_OUT]
    assert torch.equal(small, dense[:, list(read_kept(artifact(folder / "out", "rewrite"))[0].get("dim_ff", ()))])
    refitted = report(folder, {**cut, "compensate": "least-squares"})
    assert refitted["kept"] == plain["kept"]
    assert refitted["models"]["small"]["loss"] < plain["models"]["small"]["loss"] - 0.05
    masks = [str(shutil.copy(path, tmp_path)) for path in sorted((folder / "out/masks").glob("*.pt"))]
    loaded = report(folder, {"pass": "load-mask", "path": masks, "compensate": "least-squares"})
    assert loaded["kept"] == plain["kept"]
    assert loaded["models"]["small"]["loss"] == pytest.approx(refitted["models"]["small"]["loss"], abs=0.05)


def test_a_sublayer_that_goes_leaves_nothing_to_refit(folder: Path) -> None:
    cut = {"pass": "score-mask", "criterion": "activation", "unit": "attention", "target": {"num_attention": 2}}
    found = report(folder, {**cut, "compensate": "least-squares"})
    assert [p["metrics"]["refitted"] for p in found["passes"] if p["pass"] == "compensate"] == [0]
    assert sum(heads is None for heads in found["kept"]["attention"].values()) == 1


@pytest.mark.parametrize(
    "without_training",
    [
        {"criterion": "magnitude"},
        {"criterion": "activation", "compensate": "least-squares"},
        {"criterion": "taylor"},
        {"criterion": "reconstruction"},
    ],
    ids=lambda options: "+".join(options.values()),
)
def test_events_are_of_training_steps_and_have_a_loss(folder: Path, without_training: dict[str, str]) -> None:
    """Scores and refits show their steps on the console, and write none."""
    found = report(folder, {"pass": "score-mask", **without_training, **CUT})
    events = [json.loads(line) for line in (folder / "out/events.jsonl").read_text().splitlines()]
    (trained,) = (entry["name"] for entry in found["passes"] if entry["pass"] == "train")
    assert [(event["node"], event["step"]) for event in events] == [(trained, step) for step in range(1, 151)]
    assert all(isinstance(event["loss"], float) for event in events)


def refitted(folder: Path, **options: Any) -> dict[str, Any]:
    """The metrics of a refit."""
    cut = {"pass": "score-mask", "criterion": "activation", **CUT, "compensate": "least-squares", **options}
    found = report(folder, cut)
    return next(entry["metrics"] for entry in found["passes"] if entry["pass"] == "compensate")


def test_a_refit_looks_at_20_thousand_tokens_and_says_what_it_has_chosen(folder: Path) -> None:
    metrics, given = refitted(folder), refitted(folder, ridge=0.2, batches=10)
    sequences = -(-TOKENS // (4 * 34)) * 4  # batches of four rows of 34 positions
    assert metrics["tokens"] == sequences * 34
    assert metrics["unseen_tokens"] == 4096 // 34 * 34
    assert metrics["refitted"] == len(metrics["ridges"]) > 2
    assert W_OUT in metrics["ridges"] and set(metrics["ridges"].values()) <= set(RIDGES)
    assert metrics["ridge"].startswith(f"{min(metrics['ridges'].values()):g}")
    assert "notes" not in metrics
    assert (given["tokens"], given["unseen_tokens"], given["ridge"]) == (10 * 4 * 34, 0, "0.2")


def test_few_tokens_are_drawn_to_the_old_weights_by_more(folder: Path) -> None:
    few, many = refitted(folder, batches=1)["ridges"], refitted(folder)["ridges"]
    assert sum(few[name] > many[name] for name in few) > sum(few[name] < many[name] for name in few)


def test_a_text_of_few_tokens_says_so(tmp_path: Path) -> None:
    """It is cut into windows that share nothing; the only one leaves none to choose a ridge by."""
    cut = {"pass": "score-mask", "criterion": "activation", **CUT, "compensate": "least-squares", "batches": 4}
    told = []
    for windows in (10, 1):
        text = "abcdefgh" * 4 * windows + "some more"  # windows of 32, and the prompt
        (tmp_path / "text.txt").write_text(text)
        data = plan()["data"] | {"source": "text", "path": "text.txt", "held_out": "text.txt"}
        content = plan({**TRAIN, "steps": 1}, cut, EMIT, evaluate={"tokens": 10}, data=data)
        found = execute(lower(read_plan(write(tmp_path, content))), tmp_path / "out").data
        told.append(next(entry["metrics"] for entry in found["passes"] if entry["pass"] == "compensate"))
    assert told[0]["tokens"] == 10 * 34 and told[0]["unseen_tokens"] == 2 * 34
    assert told[0]["notes"] == ["refitted on 10 sequences, since the data has no more of 16"]
    assert told[1]["notes"][1] == "one sequence leaves none to choose a ridge by; 0.1 was taken"
    assert told[1]["ridge"] == "0.1"
