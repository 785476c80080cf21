"""Ctrl-C and SIGTERM in the middle of every kind of pass: answered within two seconds, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.small_plans import MODEL, execute, plan, read_report, write

ROOT = Path(__file__).parents[2]
SECONDS = 2.0
# A pass does its real work over and over, so that a signal always finds it in the middle of it.
AGAIN = """
import importlib, shutil, sys
name = sys.argv.pop(1)
module = importlib.import_module(f"sprunec.passes.{name}")
once = module.run
def run(job):
    while True:
        once(job)
        for path in job.out.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
module.run = run
from sprunec.cli import main
main()
"""
# The main thread is inside of one call of torch for minutes, where no handler of Python's can run.
STUCK = """
import sys, torch
from sprunec.passes.measuring import evaluate
sys.argv.pop(1)
large = torch.ones(9000, 9000, dtype=torch.float64)
evaluate.run = lambda job: large @ large
from sprunec.cli import main
main()
"""
PASSES = {
    "data": "read_data",
    "load": "load",
    "score-mask": "score_mask",
    "binarize": "binarize",
    "compensate": "compensate",
    "rewrite": "cut",
    "load-mask": "load_mask",
    "sparsify": "sparsify",
    "expand": "expand",
    "emit": "emit",
    "compare": "compare",
    "compare-format": "measuring.compare_format",
    "evaluate": "measuring.evaluate",
    "measure-speed": "measuring.measure_speed",
}
OFTEN = ("data", "compensate", "compare-format")  # no two are alike; for the others the long form is enough


def content() -> dict[str, Any]:
    """A plan with every kind of pass that does not train step by step."""
    look = {"criterion": "reconstruction", "compensate": "least-squares", "batches": 2}
    return plan(
        {"pass": "train", "steps": 1},
        {"pass": "score-mask", "unit": "head", "target": {"num_heads": 4}, **look},
        {"pass": "load-mask", "path": "dims.pt"},
        {"pass": "sparsify", "pattern": "m4n2_1d", "tensors": ["project_"]},
        {"pass": "emit", "formats": ["sprunec", "huggingface", "pt2"]},
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run."""
    directory = tmp_path_factory.mktemp("done")
    keep = torch.arange(MODEL["dim_ff"]).lt(24).float()
    torch.save({"dimff_z": keep.expand(MODEL["num_layers"], -1).clone()}, directory / "dims.pt")
    assert execute(content(), directory)["status"] == "done"
    return directory


def started(directory: Path, *how: str) -> subprocess.Popen[str]:
    """`sprunec run` of the folder's plan, or a script that comes to it."""
    return subprocess.Popen(
        [
            sys.executable,
            *(how or ("-m", "sprunec")),
            "run",
            str(directory / "plan.json"),
            "--out",
            str(directory / "out"),
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def interrupted(directory: Path, script: str, module: str, number: signal.Signals, name: str) -> tuple[float, str]:
    """Send a signal a moment after the node `name` has begun -> seconds until it is answered, and what was said."""
    running = started(directory, "-c", script, module)
    assert running.stderr is not None
    begun = ""
    for line in running.stderr:
        begun += line
        if line.rstrip().endswith(f"] {name}"):
            break
    time.sleep(0.4)
    assert running.poll() is None, begun
    sent = time.monotonic()
    running.send_signal(number)
    told = ""
    while "run the same command again to continue" not in told and (line := running.stderr.readline()):
        told += line
    seconds = time.monotonic() - sent
    told += running.communicate(timeout=10)[1]
    assert running.returncode == 130, begun + told
    assert "Traceback" not in told
    return seconds, told


def undone(done: Path, copy: Path, pass_: str) -> tuple[Path, str]:
    """A copy of the run that lacks the artifact of the first node of a pass; the node's name."""
    shutil.copytree(done, copy, symlinks=True)
    entry = next(entry for entry in read_report(copy / "out")["passes"] if entry["pass"] == pass_)
    shutil.rmtree(copy / "out/store" / entry["digest"])
    return copy, entry["name"]


@pytest.mark.parametrize(
    ("pass_", "module"),
    [pytest.param(*item, marks=[pytest.mark.slow] * (item[0] not in OFTEN), id=item[0]) for item in PASSES.items()],
)
def test_a_signal_stops_every_kind_of_pass_within_two_seconds(
    pass_: str, module: str, done: Path, tmp_path: Path
) -> None:
    directory, name = undone(done, tmp_path / "copy", pass_)
    number = (signal.SIGINT, signal.SIGTERM)[list(PASSES).index(pass_) % 2]
    seconds, told = interrupted(directory, AGAIN, module, number, name)
    assert "run the same command again to continue" in told
    assert seconds < SECONDS
    assert read_report(directory / "out")["status"] == "interrupted"
    assert not list((directory / "out/store").glob("writing-*"))


def test_a_run_goes_on_to_the_same_files(done: Path, tmp_path: Path) -> None:
    directory, name = undone(done, tmp_path / "copy", "compare")
    interrupted(directory, AGAIN, "compare", signal.SIGINT, name)
    report = execute(content(), directory)
    assert report["status"] == "done"
    assert sum(not entry["cached"] for entry in report["passes"]) == 1
    for file in ("model.safetensors", "config.json", "model.py"):
        assert (directory / "out/model/sprunec" / file).read_bytes() == (done / "out/model/sprunec" / file).read_bytes()


def test_a_main_thread_that_cannot_answer_is_ended(done: Path, tmp_path: Path) -> None:
    directory, name = undone(done, tmp_path / "copy", "evaluate")
    seconds, _ = interrupted(directory, STUCK, "-", signal.SIGINT, name)
    assert seconds < SECONDS
    assert read_report(directory / "out")["status"] == "interrupted"
    assert execute(content(), directory)["status"] == "done"


def test_make_data_leaves_nothing_behind(tmp_path: Path) -> None:
    pieces = ["<pad>", "<unk>", "<s>", "</s>", *map(chr, range(97, 123))]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    (tmp_path / "text.txt").write_text("words to be read again and again, for a long time\n" * 200_000)
    command = ["make-data", str(tmp_path / "text.txt"), "--out", str(tmp_path / "set"), "--vocab"]
    running = subprocess.Popen(
        [sys.executable, "-m", "sprunec", *command, str(tmp_path / "vocab.txt")], cwd=ROOT, stderr=subprocess.DEVNULL
    )
    while running.poll() is None and not list(tmp_path.glob(".set.*")):
        time.sleep(0.02)
    time.sleep(0.3)
    sent = time.monotonic()
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 130
    assert time.monotonic() - sent < SECONDS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.txt", "vocab.txt"]


def test_steps_are_finished_and_saved_before_a_training_pass_stops(tmp_path: Path) -> None:
    """A second signal does not wait for them."""
    write(tmp_path, plan({"pass": "train", "steps": 4000}))
    for times in (1, 2):
        with started(tmp_path) as running:
            assert running.stderr is not None
            next(line for line in running.stderr if "step " in line)
            sent = time.monotonic()
            for _ in range(times):
                running.send_signal(signal.SIGINT)
                time.sleep(0.01)
            next(line for line in running.stderr if "stopping after this step, which is saved" in line)
            assert time.monotonic() - sent < SECONDS
            running.stderr.read()
        assert running.returncode == 130
        assert list((tmp_path / "out/store").glob("partial-*/step-*"))


def test_what_an_interrupt_leads_to_is_one(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's writer fails with an error of its own when a signal arrives while it writes."""

    def run(job: Any) -> Any:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")

    directory, _ = undone(done, tmp_path / "copy", "compare-format")  # a pass that may fail alone
    monkeypatch.setattr("sprunec.passes.measuring.compare_format.run", run)
    with pytest.raises(KeyboardInterrupt):
        execute(content(), directory)
    assert read_report(directory / "out")["status"] == "interrupted"
