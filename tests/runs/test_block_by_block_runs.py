"""Passes that go block by block through a model, hidden states on disk: killed anywhere, they end with the same."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sprunec.checkpoint.reader import open_tensors
from sprunec.compiler.lower import lower
from sprunec.execution.execute import execute
from sprunec.execution.progress import Watcher
from sprunec.plan.plan import read_plan
from tests.helpers.processes import ROOT, environment
from tests.helpers.small_plans import artifact
from tests.runs.test_causal_lms import EMIT, directory
from tests.runs.test_resume import fingerprints

SCORE = {"pass": "score-mask", "criterion": "reconstruction", "unit": ["kv_group", "dim_ff"], "batches": 8}
CUTS: dict[str, dict[str, Any]] = {
    "score-mask": SCORE | {"target": {"sparsity": 0.3}, "compensate": "least-squares"},
    "search": {"pass": "search", "units": ["kv_group", "dim_ff"], "batches": 8, "damage_batches": 2, "finalists": 2},
}
PASSES = (
    pytest.param("score-mask", "compensate", marks=pytest.mark.slow),
    ("score-mask", "compare"),
    pytest.param("score-mask", "score-mask-kv_group-dim_ff", marks=pytest.mark.slow),
    pytest.param("search", "score-choices-kv_group-dim_ff", marks=pytest.mark.slow),
    pytest.param("search", "measure-finalists", marks=pytest.mark.slow),
)
KILLS = 10


def write_plan(folder: Path, engine: Mapping[str, Any] = {"hidden_states": "disk"}, by: str = "score-mask") -> Path:
    """A plan for a model whose layers are cut unlike, and refitted."""
    directory(folder, "llama", torch.bfloat16, num_hidden_layers=4, attention_bias=False)
    cut = dict(CUTS[by])
    if by == "search":
        cut |= {"target": {"parameters": parameters(folder) * 9 // 10}}
    content = {
        "name": "killed",
        "model": {"path": "dense"},
        "data": {"source": "python-docs", "max_length": 64, "batch_size": 8},
        "engine": dict(engine),
        "evaluate": {"tokens": 2_000},
        "passes": [cut, EMIT],
    }
    (folder / "plan.json").write_text(json.dumps(content))
    return folder / "plan.json"


def parameters(folder: Path) -> int:
    return sum(tensor.numel() for tensor in load_file(folder / "dense/model.safetensors").values())


def run(path: Path, watcher: Any = None) -> dict[str, Any]:
    return execute(lower(read_plan(path)), path.parent / "out", watcher).data


def figures(out: Path) -> list[Any]:
    """Losses, how far models are apart, and how refits were drawn to the old weights."""
    report = json.loads((out / "report.json").read_text())
    (ridges,) = (entry["metrics"]["ridges"] for entry in report["passes"] if entry["pass"] == "compensate")
    return [*(model["loss"] for model in report["models"].values()), report["comparison"], ridges]


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give OUT of a run that nothing stopped, by how it cuts."""

    @cache
    def whole(by: str) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        run(write_plan(folder, by=by))
        return folder / "out"

    return whole


class Steps(Watcher):
    """The blocks that were gone through, by pass; presses Ctrl-C at one of them."""

    def __init__(self, stop: tuple[str, int] | None = None) -> None:
        self.stop, self.steps, self.node = stop, dict[str, list[int]](), ""

    def node_started(self, index: int, total: int, name: str) -> None:
        self.node = name.partition("-")[2]

    def step(self, event: Mapping[str, Any]) -> None:
        self.steps.setdefault(self.node, []).append(event["step"])
        if self.stop == (self.node, event["step"]):
            raise KeyboardInterrupt


@pytest.mark.parametrize(("by", "name"), PASSES)
def test_each_pass_goes_on_at_the_block_it_was_at(
    by: str, name: str, wholes: Callable[[str], Path], tmp_path: Path
) -> None:
    path, whole = write_plan(tmp_path, by=by), wholes(by)
    with pytest.raises(KeyboardInterrupt):
        run(path, Steps((name, 3)))
    (partial,) = (tmp_path / "out/store").glob("partial-*")
    assert name == "compare" or by == "search" or len(list(partial.glob("hidden-states-*.bin"))) == 2
    again = Steps()
    run(path, again)
    assert again.steps[name][:2] == [3, 4]  # the third had not been saved
    assert fingerprints(tmp_path / "out") == fingerprints(whole)
    assert figures(tmp_path / "out") == figures(whole)
    assert not list((tmp_path / "out/store").glob("partial-*"))


def test_refitted_weights_are_stored_as_the_model_is_and_the_others_are_the_users_own(
    wholes: Callable[[str], Path],
) -> None:
    whole = wholes("score-mask")
    refitted, dense = artifact(whole, "compensate"), open_tensors(whole.parent / "dense")
    tensors = open_tensors(refitted)
    changed = {name for name in tensors if not torch.equal(tensors[name], dense[name])}
    assert {name.split(".", 3)[3] for name in changed} == {"self_attn.o_proj.weight", "mlp.down_proj.weight"}
    assert {tensors.dtype(name) for name in tensors} == {torch.bfloat16}
    (link,) = refitted.glob("earlier-*.safetensors")
    assert link.is_symlink() and link.resolve() == (whole.parent / "dense/model.safetensors").resolve()
    own = [file for file in refitted.glob("*.safetensors") if not file.is_symlink()]
    held = set[str]()
    for file in own:
        with safe_open(file, "pt") as opened:
            held |= set(opened.keys())
    assert held == changed and len(own) == 4


@pytest.mark.slow
@pytest.mark.parametrize("by", CUTS)
def test_a_run_that_is_killed_ten_times_ends_with_the_same_bytes(
    by: str, wholes: Callable[[str], Path], tmp_path: Path
) -> None:
    path, whole, draw = write_plan(tmp_path, by=by), wholes(by), random.Random(0)
    command = [sys.executable, "-m", "sprunec", "run", str(path), "--out", str(tmp_path / "out"), "--quiet"]
    started = time.monotonic()
    assert subprocess.run([*command[:-2], str(tmp_path / "timed")], cwd=ROOT, env=environment()).returncode == 0
    seconds, killed = time.monotonic() - started, 0
    while killed < KILLS:
        process = subprocess.Popen(command, cwd=ROOT, env=environment())
        try:
            assert process.wait(timeout=draw.uniform(0.2, 0.5) * seconds) == 0
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
    assert subprocess.run(command, cwd=ROOT, env=environment()).returncode == 0
    assert killed > 2
    assert fingerprints(tmp_path / "out") == fingerprints(whole)
    assert figures(tmp_path / "out") == figures(whole)
