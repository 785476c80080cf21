"""Runs that fail: each says why, loses nothing, and leaves nothing that looks finished."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sprunec
from sprunec.cli import main
from sprunec.errors import ComparisonError, InputError, PassError
from sprunec.execution.progress import Watcher
from sprunec.models import model_source
from sprunec.rewrite import gating, surgery
from sprunec.units import Cut
from tests.helpers.small_plans import (
    EMIT,
    MODEL,
    TRAIN,
    artifact,
    execute,
    guide,
    mask_pass,
    plan,
    read_report,
    save_weights,
    write,
)


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of `sprunec ...`."""
    monkeypatch.setattr("sys.argv", ["sprunec", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def broken_cut(block: Any, kept: Cut, tensors: Any) -> Any:
    """A rewrite that forgets which bias columns this layer reads, as BMCook's did."""
    module = whole_cut(block, kept, tensors)
    for name, buffer in module.named_buffers():
        if name.startswith("kept_"):
            buffer.copy_(torch.arange(buffer.numel()))
    return module


whole_cut = surgery.cut_block


def test_a_wrong_rewrite_is_not_emitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surgery, "cut_block", broken_cut)
    with pytest.raises(ComparisonError, match="nothing is emitted"):
        execute(guide(), tmp_path)
    report = read_report(tmp_path / "out")
    assert report["status"] == "comparison-failed"
    assert report["comparison"]["max_abs_difference"] > 1e-4
    assert not (tmp_path / "out" / "model").exists()


def test_a_mask_that_does_not_close_fails_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaky(x: torch.Tensor, gate: torch.Tensor, *place: int) -> torch.Tensor:
        return whole_scale(x, gate.clamp(min=0.01), *place)

    whole_scale = gating.scale_along
    monkeypatch.setattr(gating, "scale_along", leaky)
    monkeypatch.setattr("sys.argv", ["sprunec", "run", str(write(tmp_path, guide())), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1


def test_target_missed_exits_4_and_emits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = plan(TRAIN, mask_pass("head", {"num_heads": 3}, budget="per-layer"), EMIT)
    assert run(["run", str(write(tmp_path, content)), "--out", str(tmp_path / "out")], monkeypatch) == 4
    assert (tmp_path / "out/model/sprunec/model.safetensors").exists()
    captured = capsys.readouterr()
    assert re.search(r"not settled: \d-train-mask-head: num_heads layer 0 expected [\d.]+, target 3", captured.err)
    assert "held-out loss" in captured.out
    assert (tmp_path / "out/report.html").exists()


def test_missing_checkpoint_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = plan(TRAIN, model={"config": MODEL, "checkpoint": "gone.safetensors"})
    assert run(["run", str(write(tmp_path, content)), "--out", str(tmp_path / "out")], monkeypatch) == 3
    assert "gone.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_pickled_checkpoint_is_not_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"input_embedding.weight": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(InputError, match="bomb.pt"):
        execute(plan(TRAIN, model={"config": MODEL, "checkpoint": "bomb.pt"}), tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_loss_that_explodes_stops_the_pass(tmp_path: Path) -> None:
    with pytest.raises(PassError, match=r"the (loss|gradient norm) became (nan|inf) at training step \d+"):
        execute(plan({"pass": "train", "steps": 60, "learning_rate": 1000, "schedule": "constant"}), tmp_path)
    assert read_report(tmp_path / "out")["status"] == "failed"


def test_what_an_earlier_run_published_does_not_stay_beside_another_report(finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "out")
    report = execute(plan(TRAIN), tmp_path)
    assert report["status"] == "done"
    assert not any((out / name).exists() for name in ("model", "masks", "recipe.json"))
    events = [json.loads(line)["node"] for line in (out / "events.jsonl").read_text().splitlines()]
    assert set(events) <= {"3-train"}  # nothing of passes that this plan has not
    execute(guide(), tmp_path)
    for name in ("model/sprunec/model.safetensors", "recipe.json"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()


def test_one_run_at_a_time(tmp_path: Path) -> None:
    class Rival(Watcher):
        def node_started(self, index: int, total: int, name: str) -> None:
            execute(plan(TRAIN), tmp_path)

    graph = sprunec.lower(sprunec.read_plan(write(tmp_path, plan(TRAIN))))
    with pytest.raises(PassError, match=rf"in use by another run, process {os.getpid()}"):
        sprunec.execute(graph, tmp_path / "out", Rival())
    assert execute(plan(TRAIN), tmp_path)["status"] == "done"


def test_a_file_that_changes_meanwhile_is_not_stored(tmp_path: Path) -> None:
    class Writes(Watcher):
        def node_started(self, index: int, total: int, name: str) -> None:
            (tmp_path / "mine").write_text("another text, and a longer one " * 60)

    (tmp_path / "mine").write_text("a text that is long enough to train on " * 40)
    content = plan(TRAIN, data={"source": "text", "path": "mine", "max_length": 34, "batch_size": 4})
    graph = sprunec.lower(sprunec.read_plan(write(tmp_path, content)))
    with pytest.raises(PassError, match="mine has changed since the run began"):
        sprunec.execute(graph, tmp_path / "out", Writes())
    assert execute(content, tmp_path)["status"] == "done"


def test_a_mask_file_that_is_missing_stops_before_any_work(tmp_path: Path) -> None:
    content = plan(TRAIN, {"pass": "load-mask", "path": "gone.pt"}, EMIT)
    graph = sprunec.lower(sprunec.read_plan(write(tmp_path, content)))
    with pytest.raises(InputError, match=r"gone\.pt: error: there is no such file"):
        sprunec.execute(graph, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_dry_run_foretells_what_sparsity_leaves(share: float, tmp_path: Path) -> None:
    content = plan(TRAIN, mask_pass("head", {"sparsity": share}), EMIT, evaluate={"tokens": 60})
    foretold = sprunec.lower(sprunec.read_plan(write(tmp_path, content))).parameters[1]
    report = execute(content, tmp_path)
    unit = 4 * MODEL["dim_head"] * MODEL["dim_model"]
    absent = sum(heads is None for heads in report["kept"]["attention"].values()) * MODEL["dim_model"]
    assert foretold - unit < report["models"]["small"]["parameters"] + absent <= foretold


def test_a_checkpoint_with_whole_numbers_besides_goes_in(finished: Path, tmp_path: Path) -> None:
    state = load_file(artifact(finished, "load") / "model.safetensors")
    torch.save(state | {"optimizer.step": torch.ones(1, dtype=torch.int64)}, tmp_path / "more.pt")
    content = plan(EMIT, model={"config": MODEL, "checkpoint": "more.pt"})
    execute(content, tmp_path)
    assert load_file(tmp_path / "out/model/sprunec/model.safetensors").keys() == state.keys()


def test_a_cache_that_decodes_wrongly_fails_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the cached method is broken: the plain forward of what is emitted is right."""
    whole = model_source._model_source

    def broken(*arguments: Any) -> str:
        source = whole(*arguments)
        assert "torch.cat((past_value, " in source
        return source.replace("torch.cat((past_value, ", "torch.cat((0.9 * past_value, ")

    monkeypatch.setattr(model_source, "_model_source", broken)
    with pytest.raises(ComparisonError, match="nothing is emitted"):
        execute(plan(TRAIN, mask_pass("head", {"num_heads": 3}), EMIT), tmp_path)


@pytest.mark.parametrize(("kind", "number"), [(torch.float64, 1e300), (torch.float32, 3e38), (torch.bfloat16, -3e38)])
def test_weights_that_are_too_large_to_compute_with_are_told(kind: torch.dtype, number: float, tmp_path: Path) -> None:
    state = torch.load(save_weights(tmp_path / "m.pt"))
    state["encoder.output_layernorm.weight"] = torch.full((32,), number, dtype=kind)
    torch.save(state, tmp_path / "m.pt")
    model = {"config": MODEL, "checkpoint": "m.pt"}
    with pytest.raises(PassError, match=r"the held-out loss is (nan|inf): numbers .* too large for float32; fix the"):
        execute(plan(EMIT, model=model, compare={"tokens": 20}), tmp_path)
