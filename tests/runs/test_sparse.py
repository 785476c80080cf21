"""Whole runs with a 2:4 pass: zeros stay zeros to the end, and what cannot work is told before it costs anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sprunec
from sprunec.cli import main
from sprunec.errors import InputError
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.masks.two_four import leaks, violation
from sprunec.plan.plan import check_plan
from tests.helpers.small_plans import EMIT, MODEL, artifact, execute, mask_pass, plan, read_report, write
from tests.runs.test_resume import Counts, fingerprints

TRAIN = {"pass": "train", "steps": 4}
FINETUNE = {"pass": "finetune", "steps": 4}
W_0 = "encoder.layers.0.ffn.ffn.w_in.w_0.weight"


def sparsify(pattern: str = "m4n2_1d", **options: Any) -> dict[str, Any]:
    return {"pass": "sparsify", "pattern": pattern, **options}


def score(unit: str, **target: Any) -> dict[str, Any]:
    return {"pass": "score-mask", "criterion": "magnitude", "unit": unit, "target": target, "budget": "global"}


def metrics(out: Path, pass_: str) -> dict[str, Any]:
    return [entry["metrics"] for entry in read_report(out)["passes"] if entry["pass"] == pass_][-1]


def run(path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["sprunec", "run", str(path), "--out", str(out), "--quiet"])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, dense but for its pattern, with the mask it saved."""
    directory = tmp_path_factory.mktemp("sparse")
    execute(plan(TRAIN, sparsify(save_mask="masks/two_four.pt"), FINETUNE, EMIT), directory)
    return directory


@pytest.mark.parametrize(
    ("pattern", "optimizer"),
    [("m4n2_1d", {"optimizer": "adamw"}), ("m4n2_2d", {"optimizer": "sgd", "betas": [0.9, 0.999]})],
)
def test_zeros_stay_zeros_from_the_pass_to_the_emitted_weights(
    pattern: str, optimizer: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = plan(TRAIN, sparsify(pattern), FINETUNE, EMIT, training=optimizer | {"weight_decay": 0.1})
    assert run(write(tmp_path, content), tmp_path / "out", monkeypatch) == 0
    sparsified, tuned = (artifact(tmp_path / "out", name) for name in ("sparsify", "finetune"))
    masks, before = load_file(sparsified / "pattern.safetensors"), load_file(sparsified / "model.safetensors")
    assert len(masks) == 7 * MODEL["num_layers"]
    assert all(violation(pattern, mask) is None for mask in masks.values())
    emitted = load_file(tmp_path / "out/model/sprunec/model.safetensors")
    for state in (before, load_file(tuned / "model.safetensors"), emitted):
        assert leaks(state, masks) == []
        assert all(bool(state[name][mask].all()) for name, mask in masks.items())
    assert all(bool((emitted[name] != before[name])[mask].any()) for name, mask in masks.items())
    assert (tuned / "pattern.safetensors").read_bytes() == (sparsified / "pattern.safetensors").read_bytes()
    assert metrics(tmp_path / "out", "sparsify")["density"] == metrics(tmp_path / "out", "finetune")["density"] == 0.5
    assert sprunec.load(tmp_path / "out/model/sprunec").state_dict().keys() == emitted.keys()


def test_the_two_largest_of_every_four_of_the_trained_weights_stay(sparse: Path) -> None:
    before = load_file(artifact(sparse / "out", "train") / "model.safetensors")
    masks = load_file(artifact(sparse / "out", "sparsify") / "pattern.safetensors")
    after = load_file(artifact(sparse / "out", "sparsify") / "model.safetensors")
    for name, mask in masks.items():
        least = before[name].abs().unflatten(1, (-1, 4)).topk(2, dim=-1).values[..., -1:]
        assert torch.equal(mask, (before[name].abs().unflatten(1, (-1, 4)) >= least).flatten(1))
        assert torch.equal(after[name], before[name] * mask)
    untouched = before.keys() - masks.keys()
    assert "input_embedding.weight" in untouched
    assert all(torch.equal(before[name], after[name]) for name in untouched)


def test_dense_is_measured_before_and_small_after_the_pattern(sparse: Path) -> None:
    report = read_report(sparse / "out")
    assert report["status"] == "done"
    order = [entry["name"].partition("-")[2] for entry in report["passes"]]
    assert order.index("evaluate-dense") < order.index("sparsify") < order.index("evaluate-small")
    assert report["models"]["dense"]["loss"] != report["models"]["small"]["loss"]
    assert report["comparison"]["max_abs_difference"] < 1e-12
    share = metrics(sparse / "out", "sparsify")
    assert 0.6 < share["retained"] < 0.8 and share["tensors"] == 21


def test_the_saved_mask_applied_gives_the_same_weights(sparse: Path, tmp_path: Path) -> None:
    execute(plan(TRAIN, sparsify(path=str(sparse / "masks/two_four.pt")), FINETUNE, EMIT), tmp_path)
    for pass_ in ("sparsify", "finetune"):
        one, other = (artifact(directory / "out", pass_) / "model.safetensors" for directory in (sparse, tmp_path))
        assert one.read_bytes() == other.read_bytes()


def test_a_mask_of_some_tensors_leaves_the_others_dense(tmp_path: Path) -> None:
    first, block = torch.tensor([1.0, 0, 0, 1]).repeat(48, 8), "encoder.layers.0."
    shapes = ModelConfig.from_dict(MODEL).tensors()
    masks = {name: first if name == W_0 else torch.ones(shapes[name]) for name in shapes if name.startswith(block)}
    pairs = [(name.removeprefix(block), mask) for name, mask in masks.items()]
    torch.save({"encoder.layers.0": pairs}, tmp_path / "hand.pt")
    words = ["layers.0.ffn.ffn.w_in.w_0"]
    execute(plan(TRAIN, sparsify(tensors=words, path="hand.pt"), FINETUNE, EMIT), tmp_path)
    emitted = load_file(tmp_path / "out/model/sprunec/model.safetensors")
    assert torch.equal(emitted[W_0] != 0, first.bool())
    assert bool(emitted[W_0.replace("w_0", "w_1")].all())


def test_a_pattern_after_a_cut_is_the_small_models(tmp_path: Path) -> None:
    content = plan(
        TRAIN,
        mask_pass("head", {"num_heads": 3}),
        mask_pass("dim_ff", {"dim_ff": 20}, budget="per-layer"),
        sparsify("m4n2_2d"),
        FINETUNE,
        EMIT,
    )
    report = execute(content, tmp_path)
    assert report["comparison"]["max_abs_difference"] < 1e-10
    assert set(report["kept"]["feed_forward"].values()) == {20}
    masks = load_file(artifact(tmp_path / "out", "finetune") / "pattern.safetensors")
    emitted = load_file(tmp_path / "out/model/sprunec/model.safetensors")
    assert masks[W_0].shape == emitted[W_0].shape == (20, 32)
    assert leaks(emitted, masks) == []
    assert report["models"]["masked"]["loss"] == pytest.approx(report["models"]["small"]["loss"], abs=1e-5)


def test_a_tile_that_could_keep_more_is_taken_and_told(tmp_path: Path) -> None:
    """As BMCook's greedy choice leaves them."""
    words = ["layers.1.ffn.ffn.w_out"]
    execute(plan(TRAIN, sparsify("m4n2_2d", tensors=words, save_mask="best.pt")), tmp_path)
    content = torch.load(tmp_path / "best.pt", weights_only=True)
    mask = dict(content["encoder.layers.1"])["ffn.ffn.w_out.weight"]
    mask[tuple(mask.nonzero()[0].tolist())] = 0
    torch.save(content, tmp_path / "greedy.pt")
    execute(plan(TRAIN, sparsify("m4n2_2d", tensors=words, path="greedy.pt"), FINETUNE), tmp_path)
    tiles = 32 * 48 // 16
    assert metrics(tmp_path / "out", "sparsify")["notes"] == [f"1 of {tiles} tiles keep 7 weights and could keep 8"]
    assert metrics(tmp_path / "out", "finetune")["density"] == (8 * tiles - 1) / (16 * tiles)


def test_tensors_that_a_cut_took_away_are_told(tmp_path: Path) -> None:
    layers = {"self_att_layer_z": torch.zeros(3), "cross_att_layer_z": torch.zeros(0), "ffn_layer_z": torch.ones(3)}
    torch.save(layers, tmp_path / "layers.pt")
    gone = {"pass": "load-mask", "path": "layers.pt"}
    with pytest.raises(InputError, match="no tensor that is left has one of project_q in its name"):
        execute(plan(TRAIN, gone, sparsify(tensors=["project_q"])), tmp_path)


def test_uneven_widths_are_told_by_name_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = plan(TRAIN, sparsify(), model={"config": MODEL | {"dim_ff": 350}})
    assert run(write(tmp_path, content), tmp_path / "out", monkeypatch) == 3
    words = " ".join(capsys.readouterr().err.split())
    assert "encoder.layers.0.ffn.ffn.w_out.weight is [32, 350] here, and 350 is not a multiple of 4" in words
    assert not (tmp_path / "out").exists()


def test_widths_that_the_run_chooses_uneven_are_told_by_name(tmp_path: Path) -> None:
    content = plan(TRAIN, score("dim_ff", dim_ff=21), sparsify())
    assert [f.code for f in check_plan(write(tmp_path, content))[1]] == ["unknown-width"]
    with pytest.raises(InputError, match=r"encoder\.layers\.\d\.ffn\.ffn\.w_out\.weight.* is \[32, \d+\], and \d+ is"):
        execute(content, tmp_path)
    assert read_report(tmp_path / "out")["status"] == "failed"


def test_a_hostile_mask_file_is_not_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "exploded"),)

    torch.save({"input_embedding": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(InputError, match=r"bomb\.pt.*cannot be read"):
        execute(plan(TRAIN, sparsify(path="bomb.pt")), tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_a_mask_of_another_model_stops_the_run(sparse: Path, tmp_path: Path) -> None:
    content = plan(TRAIN, sparsify(path=str(sparse / "masks/two_four.pt")), model={"config": MODEL | {"dim_ff": 40}})
    with pytest.raises(InputError, match=r"w_0.weight is \[48, 32\], the weight here is \[40, 32\]"):
        execute(content, tmp_path)


def test_a_mask_file_that_is_missing_is_told_before_any_work(tmp_path: Path) -> None:
    content = plan(TRAIN, sparsify(path="gone.pt"))
    (finding,) = check_plan(write(tmp_path, content))[1]
    assert (finding.code, finding.severity, finding.pointer) == ("missing-file", "warning", "/passes/1/path")
    with pytest.raises(InputError, match=r"gone\.pt: error: there is no such file"):
        execute(content, tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("at", [1, 3])
def test_a_stopped_finetune_goes_on_with_the_pattern(at: int, sparse: Path, tmp_path: Path) -> None:
    content = plan(TRAIN, sparsify(), FINETUNE, EMIT, training={"checkpoint_every": 2})
    graph = sprunec.lower(sprunec.read_plan(write(tmp_path, content)))
    with pytest.raises(KeyboardInterrupt):
        sprunec.execute(graph, tmp_path / "out", Counts(("6-finetune", at)))
    again = Counts()
    sprunec.execute(graph, tmp_path / "out", again)
    assert again.steps == {"6-finetune": [1, 2, 3, 4] if at == 1 else [3, 4]}
    assert fingerprints(tmp_path / "out") == fingerprints(sparse / "out")


def test_another_run_writes_the_mask_again_from_the_store(sparse: Path, tmp_path: Path) -> None:
    mask = sparse / "masks/two_four.pt"
    content = mask.read_bytes()
    mask.unlink()
    watcher = Counts()
    graph = sprunec.lower(sprunec.read_plan(sparse / "plan.json"))
    report = sprunec.execute(graph, sparse / "out", watcher).data
    assert all(entry["cached"] for entry in report["passes"])
    assert mask.read_bytes() == content
