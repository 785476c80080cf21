"""Runs of several processes for tests: started as users start them, with a time limit, and looked into."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tests.helpers.small_plans import mask_pass, plan, write

ROOT = Path(__file__).parents[2]
LIMIT = 240
STEPS = 20
NORM = "[post]encoder.output_layernorm:[post]encoder.output_layernorm"
DISTILLATION = {"logits": 0.5, "hidden": 1.0, "pairs": [NORM], "project": True}


def every_kind(**engine: Any) -> dict[str, Any]:
    """Every pass that trains, with all that may learn in it: gates, held weights, projections; in two parts a rank."""
    content = plan(
        {"pass": "train", "steps": STEPS},
        mask_pass("head", {"num_heads": 3}, steps=STEPS, budget="global", mask_learning_rate=0.1),
        {"pass": "sparsify", "pattern": "m4n2_1d", "tensors": ["w_in"]},
        {"pass": "finetune", "steps": STEPS, "distillation": DISTILLATION},
        training={"accumulate": 2, "checkpoint_every": 5},
        engine=engine,
    )
    content["data"]["batch_size"] = 8
    return content


def command(directory: Path, processes: int, *, by_torchrun: bool = False) -> list[str]:
    run = ["sprunec", "run", str(directory / "plan.json"), "--out", str(directory / "out")]
    if by_torchrun:
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        return [sys.executable, *start, "-m", *run]
    return [sys.executable, "-m", *run, "--devices", str(processes)]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def launch(
    directory: Path, content: dict[str, Any], processes: int = 2, **how: Any
) -> subprocess.CompletedProcess[str]:
    """A run from the command line, to its end."""
    write(directory, content)
    started = command(directory, processes, **how)
    return subprocess.run(
        started, cwd=ROOT, env=environment(), timeout=LIMIT, capture_output=True, text=True, check=False
    )


def start(directory: Path, content: dict[str, Any], processes: int = 2, **how: Any) -> subprocess.Popen[str]:
    write(directory, content)
    started = command(directory, processes, **how)
    return subprocess.Popen(
        started, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def wait_until(is_so: Callable[[], object], running: subprocess.Popen[str]) -> None:
    """Ask again and again; a folder may go while it is looked through, and then it is not so yet."""
    until = time.monotonic() + LIMIT

    def asked() -> object:
        with suppress(FileNotFoundError):
            return is_so()
        return False

    while not asked():
        assert running.poll() is None, running.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)


def ranks(launcher: int) -> dict[int, int]:
    """The process of every rank that a launcher has started."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = dict(word.partition("=")[::2] for word in (folder / "environ").read_text().split("\0"))
        except (OSError, ValueError):
            continue
        if parent == launcher and "RANK" in words:
            found[int(words["RANK"])] = int(folder.name)
    return found


def saves(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "out/store").glob("partial-*/step-*"))


def events(directory: Path, node: str = "") -> list[dict[str, Any]]:
    whole, _, _ = (directory / "out/events.jsonl").read_text().rpartition("\n")  # the last may be in the writing
    lines = whole.splitlines()
    return [event for event in map(json.loads, lines) if node in event["node"]]


def masks(directory: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in (directory / "out/masks").glob("*.pt"):
        content = torch.load(path, weights_only=True)
        found |= {f"{path.name} {name}": value for name, value in content.items() if isinstance(value, torch.Tensor)}
    return found


def same_masks(left: Path, right: Path) -> bool:
    ours, theirs = masks(left), masks(right)
    return bool(ours) and ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def farthest_losses(left: Path, right: Path, of: str = "loss") -> float:
    """The largest difference at a step that both have made."""
    ours, theirs = events(left), events(right)
    assert [(e["node"], e["step"]) for e in ours] == [(e["node"], e["step"]) for e in theirs]
    return max(abs(a[of] - b[of]) for a, b in zip(ours, theirs, strict=True) if of in a)
