"""Scalars of a run, as TensorBoard reads them."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from sprunec.cli import app
from sprunec.errors import InputError
from sprunec.execution.progress import Watcher
from sprunec.show import tensorboard
from sprunec.show.tensorboard import TensorBoard, scalars
from tests.helpers.small_plans import EMIT, mask_pass, plan, write


class Heard(Watcher):
    """Notes the steps that it is told of."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def step(self, event: Any) -> None:
        self.steps.append(event["step"])


def event(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "steps": 9, "model_steps": 100 + step, "loss": 3.0 - 0.1 * step, **more}


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_a_pass_is_a_run_of_tensorboard_over_the_models_steps(tmp_path: Path) -> None:
    heard = Heard()
    board = TensorBoard(tmp_path, heard)
    board.node_started(1, 2, "3-train")
    board.step({"of": "block", "step": 1, "steps": 4})  # no training step
    for step in (1, 2, 3):
        board.step(event(step, held_out=float("nan") if step == 2 else 2.5))
    board.node_finished(1, 2, "3-train", cached=False, seconds=1.0, metrics={})
    assert heard.steps == [1, 1, 2, 3]
    found = read(tmp_path / "3-train")
    assert [step for step, _ in found["loss"]] == [101, 102, 103] and found["loss"][0][1] == pytest.approx(2.9)
    assert [step for step, _ in found["held_out"]] == [101, 103]


def test_steps_that_are_done_again_stand_once(tmp_path: Path) -> None:
    for steps in ((1, 2, 3), (2, 3, 4)):
        board = TensorBoard(tmp_path, Watcher())
        board.node_started(1, 2, "3-train")
        for step in steps:
            board.step(event(step))
        board.close()
    assert [step for step, _ in read(tmp_path / "3-train")["loss"]] == [101, 102, 103, 104]


def test_budgets_are_told_by_their_names() -> None:
    budgets = [
        {"name": "layer 0", "expected": 3.5, "target": 3.0},
        {"name": "layer 1", "expected": None, "target": 2.0},
    ]
    assert dict(scalars(event(1, budgets=budgets, undecided=4))) == {
        "loss": 2.9, "undecided": 4, "expected/layer 0": 3.5, "target/layer 0": 3.0, "target/layer 1": 2.0,
    }  # fmt: skip


def test_the_command_writes_them_into_the_runs_folder(tmp_path: Path) -> None:
    content = plan({"pass": "train", "steps": 2}, mask_pass("head", {"num_heads": 3}, steps=3, budget="global"), EMIT)
    path, out = write(tmp_path, content), tmp_path / "out"
    done = CliRunner().invoke(app, ["run", str(path), "--out", str(out), "--quiet", "--tensorboard"])
    assert done.exit_code in (0, 4), done.exception
    folders = sorted(path.name for path in (out / "tensorboard").iterdir())
    assert [name.partition("-")[2] for name in folders] == ["train", "train-mask-head"]
    assert [step for step, _ in read(out / "tensorboard" / folders[-1])["undecided"]] == [3, 4, 5]
    assert (out / "report.md").is_file() and (out / "report.html").is_file()


def test_without_the_package_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None if name == "tensorboard" else util.find_spec(name))
    path = write(tmp_path, plan({"pass": "train", "steps": 2}))
    done = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "out"), "--tensorboard"])
    assert isinstance(done.exception, InputError) and "sprunec[tensorboard]" in done.exception.diagnostics[0].hint
    assert not (tmp_path / "out").exists()
