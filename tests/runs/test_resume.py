"""A run that is stopped anywhere continues where it stopped, and ends with the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import sprunec
from sprunec.engines.checkpoints import Saves
from sprunec.execution.progress import Watcher
from tests.helpers.small_plans import EMIT, mask_pass, plan, write

ROOT = Path(__file__).parents[2]


def content(**training: Any) -> dict[str, Any]:
    return plan(
        {"pass": "train", "steps": 12},
        mask_pass("head", {"num_heads": 3}, steps=12, budget="global"),
        {"pass": "finetune", "steps": 6},
        EMIT,
        training={"checkpoint_every": 4} | training,
    )


def execute(directory: Path, watcher: Any = None, stop: Any = lambda: False) -> dict[str, Any]:
    graph = sprunec.lower(sprunec.read_plan(write(directory, content())))
    return sprunec.execute(graph, directory / "out", watcher, stop).data


class Counts(Watcher):
    """The training steps that were really made, by node; presses Ctrl-C at one of them."""

    def __init__(self, interrupt_at: tuple[str, int] | None = None) -> None:
        self.steps: dict[str, list[int]] = {}
        self.interrupt_at = interrupt_at
        self.node = ""

    def node_started(self, index: int, total: int, name: str) -> None:
        self.node = name

    def step(self, event: Mapping[str, Any]) -> None:
        if "loss" in event:
            self.steps.setdefault(self.node, []).append(event["step"])
        if self.interrupt_at == (self.node, event["step"]):
            raise KeyboardInterrupt


def fingerprints(out: Path) -> dict[str, str]:
    """Of every artifact's files; times and speeds stand in manifests, reports and events only."""
    report = json.loads((out / "report.json").read_text())
    folders = {e["digest"]: out / "store" / e["digest"] for e in report["passes"] if e["pass"] != "evaluate"}
    files = [p for d in folders.values() for p in d.rglob("*") if p.is_file() and p.name != "manifest.json"]
    files += [p for p in (out / "model").rglob("*") if p.is_file() and p.name != "origin.json"]  # it has the date
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OUT of an uninterrupted run."""
    directory = tmp_path_factory.mktemp("whole")
    execute(directory)
    return directory / "out"


def logged(out: Path) -> list[tuple[str, int, float]]:
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return [(line["node"], line["step"], line["loss"]) for line in lines]


@pytest.mark.parametrize("node", ["3-train", "5-train-mask-head"])
@pytest.mark.parametrize(("at", "rest"), [(2, 12), (7, 8), (12, 4)])
def test_a_run_stopped_at_once_goes_on_from_its_last_save(
    node: str, at: int, rest: int, whole: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        execute(tmp_path, Counts((node, at)))
    again = Counts()
    execute(tmp_path, again)
    assert again.steps[node] == list(range(12 - rest + 1, 13))
    assert fingerprints(tmp_path / "out") == fingerprints(whole)
    assert logged(tmp_path / "out") == logged(whole)
    assert not list((tmp_path / "out/store").glob("partial-*"))


def test_a_run_asked_to_stop_saves_after_its_step(whole: Path, tmp_path: Path) -> None:
    first = Counts()
    with pytest.raises(KeyboardInterrupt):
        execute(tmp_path, first, lambda: len(first.steps.get("5-train-mask-head", [])) >= 7)
    assert first.steps["5-train-mask-head"][-1] == 7
    assert json.loads((tmp_path / "out/report.json").read_text())["status"] == "interrupted"
    second = Counts()
    execute(tmp_path, second)
    assert second.steps["5-train-mask-head"] == [8, 9, 10, 11, 12]
    assert fingerprints(tmp_path / "out") == fingerprints(whole)


@pytest.mark.parametrize("damage", ["a byte", "its end"])
def test_a_damaged_save_is_not_taken_for_good(damage: str, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        execute(tmp_path, Counts(("5-train-mask-head", 7)))
    (save,) = (tmp_path / "out/store").glob("partial-*/step-*.pt")
    data = bytearray(save.read_bytes())
    data[len(data) // 2] ^= 1
    save.write_bytes(data if damage == "a byte" else data[: len(data) // 2])
    again = Counts()
    execute(tmp_path, again)
    assert again.steps["5-train-mask-head"] == list(range(1, 13))
    assert fingerprints(tmp_path / "out") == fingerprints(whole)


def test_another_interval_is_the_same_run(whole: Path, tmp_path: Path) -> None:
    """How often a pass is saved is no part of what it makes."""
    often = sprunec.lower(sprunec.read_plan(write(tmp_path, content(checkpoint_every=1))))
    assert [node.digest for node in often.nodes] == [
        entry["digest"] for entry in json.loads((whole / "report.json").read_text())["passes"]
    ]


def test_the_save_before_is_kept_until_the_next_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves = Saves(tmp_path / "partial", 1, lambda: False)
    saves.after_step(1, 9, lambda: {"step": 1})
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "no space left")))
    with pytest.raises(OSError, match="no space left"):
        saves.after_step(2, 9, lambda: {"step": 2})
    assert saves.latest() == {"step": 1}
    assert [path.suffix for path in saves.directory.iterdir()] == [".pt"]  # nothing is left aside


@pytest.mark.parametrize(("every", "saved"), [("10s", [3, 7]), ("1m", []), (4, [4, 8]), (1, list(range(1, 9)))])
def test_saves_go_by_steps_or_by_the_clock(every: int | str, saved: list[int], tmp_path: Path) -> None:
    """Four seconds a step; the clock starts again with every save, and the last step is the pass's own end."""
    now, found = [0.0], []
    saves = Saves(tmp_path / "partial", every, lambda: False, clock=lambda: now[0])
    for step in range(1, 10):
        now[0] += 4.0 if step != 4 else 0.5
        before = saves.last
        saves.after_step(step, 9, lambda step=step: {"step": step})  # type: ignore[misc]
        found += [step] if saves.last != before else []
    assert found == saved


def test_a_save_is_on_the_disk_before_the_one_before_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves, calls = Saves(tmp_path / "partial", 1, lambda: False), []
    saves.after_step(1, 9, lambda: {"step": 1})
    kinds = {"fsync": lambda fd: "folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file"}

    def watched(name: str) -> None:
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, **k: (calls.append(kinds.get(name, lambda *_: name)(*a)), real(*a, **k))[1]
        )

    for name in ("fsync", "replace", "unlink"):
        watched(name)
    saves.after_step(2, 9, lambda: {"step": 2})
    assert calls == ["file", "replace", "folder", "unlink"]


def test_an_interval_in_minutes_is_the_same_run(whole: Path, tmp_path: Path) -> None:
    timed = sprunec.lower(sprunec.read_plan(write(tmp_path, content(checkpoint_every="10m"))))
    assert {node.checkpoint_every for node in timed.nodes} == {None, "10m"}
    assert [node.digest for node in timed.nodes] == [
        entry["digest"] for entry in json.loads((whole / "report.json").read_text())["passes"]
    ]


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2)])
def test_kills_at_random_moments_lose_nothing(seed: int, whole: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sprunec", "run", str(write(tmp_path, content(checkpoint_every=2))), "--quiet"]
    command += ["--out", str(tmp_path / "out")]
    draw, kills = random.Random(seed), 0
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for _ in range(40):
        running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        if kills < 4:
            wait_for_work(tmp_path / "out", draw, running)
            running.send_signal(signal.SIGKILL)
        code = running.wait(timeout=120)
        kills += code == -signal.SIGKILL
        if code != -signal.SIGKILL:
            break
    assert code in (0, 4)
    assert kills >= 2
    assert fingerprints(tmp_path / "out") == fingerprints(whole)


class Followed:
    """A run in a process of its own, whose progress is read line by line."""

    def __init__(self, directory: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "sprunec",
            "run",
            str(directory / "plan.json"),
            "--out",
            str(directory / "out"),
        ]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        self.node = ""

    def until(self, index: int) -> None:
        """Until the node of this number, or a later one, has begun and was not in the store, or the run has ended."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            begun = re.fullmatch(r"\[(\d+)/\d+\] (\S+)\n", line)
            if begun:
                self.node = begun[2]
            if begun and int(begun[1]) >= index:
                return

    def stop(self, number: int) -> int:
        """Send the signal; the exit code."""
        self.process.send_signal(number)
        _, told = self.process.communicate(timeout=300)
        begun = re.findall(r"^\[\d+/\d+\] (\S+)$", told, re.MULTILINE)
        self.node = begun[-1] if begun else self.node
        return self.process.returncode


@pytest.mark.slow
@pytest.mark.parametrize(("number", "stops"), [(signal.SIGKILL, 60), (signal.SIGTERM, 14), (signal.SIGINT, 14)])
def test_stopped_in_every_pass_a_run_ends_with_the_same_bytes(
    number: signal.Signals, stops: int, whole: Path, tmp_path: Path
) -> None:
    """Each time in a later pass, at a random moment of it; then the same in a new OUT, until there were enough."""
    nodes = [entry["name"] for entry in json.loads((whole / "report.json").read_text())["passes"]]
    draw, made, hit, rounds = random.Random(int(number)), 0, set(), 0
    while made < stops:
        directory = tmp_path / str(rounds)
        directory.mkdir()
        write(directory, content(checkpoint_every=2))
        for index in range(1, len(nodes) + 1):
            running = Followed(directory)
            running.until(index)
            time.sleep(draw.choice([0.0, draw.uniform(0.0, 0.2)]))
            code = running.stop(number)
            if code in (0, 4):
                break
            assert code == (-number if number == signal.SIGKILL else 130)
            made, hit = made + 1, hit | {running.node}
        assert Followed(directory).stop(0) in (0, 4)
        assert fingerprints(directory / "out") == fingerprints(whole)
        assert logged(directory / "out") == logged(whole)
        rounds += 1
    if number == signal.SIGKILL:
        assert hit >= set(nodes)
    else:  # what is asked to stop ends a short pass that it is in, and the last one was the run
        assert len(hit) > len(nodes) // 2


def wait_for_work(out: Path, draw: random.Random, running: subprocess.Popen[bytes]) -> None:
    """Until the run has begun to write, then a moment more."""
    before = count_files(out)
    while running.poll() is None and count_files(out) == before:
        time.sleep(0.02)
    time.sleep(draw.uniform(0.0, 0.8))


def count_files(out: Path) -> int:
    return sum(1 for _ in out.rglob("*")) if out.exists() else 0
