"""Two processes train as one does: the same losses, the same masks, whatever each of them keeps, and across a stop."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import sprunec
from tests.helpers.processes import (
    STEPS,
    events,
    every_kind,
    farthest_losses,
    launch,
    ranks,
    same_masks,
    saves,
    start,
    wait_until,
)
from tests.helpers.small_plans import execute, plan, read_report, write

CLOSE = 1e-5
MASK = "5-train-mask-head"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an uninterrupted run of one process."""
    directory = tmp_path_factory.mktemp("alone")
    execute(every_kind(), directory)
    return directory


def check(directory: Path, alone: Path) -> None:
    assert len(events(directory)) == 3 * STEPS
    assert farthest_losses(directory, alone) < CLOSE
    assert farthest_losses(directory, alone, "distillation") < CLOSE
    assert same_masks(directory, alone)
    found, wanted = read_report(directory / "out"), read_report(alone / "out")
    assert [entry["digest"] for entry in found["passes"]] == [entry["digest"] for entry in wanted["passes"]]
    assert found["models"]["small"]["loss"] == pytest.approx(wanted["models"]["small"]["loss"], abs=1e-4)
    assert not saves(directory)


@pytest.mark.parametrize(
    ("engine", "by_torchrun"),
    [
        pytest.param({"sharding": "none"}, True, marks=pytest.mark.slow),
        ({"sharding": "full", "activation_checkpointing": True}, False),
    ],
    ids=["DDP", "FSDP2"],
)
def test_two_processes_train_as_one(engine: dict[str, Any], by_torchrun: bool, alone: Path, tmp_path: Path) -> None:
    done = launch(tmp_path, every_kind(**engine), by_torchrun=by_torchrun)
    assert done.returncode == (1 if by_torchrun else 4)  # no mask settles in 20 steps; torchrun has no other code
    check(tmp_path, alone)
    assert done.stderr.count(f"{MASK}: done in") == 1  # one of them talks
    assert "Traceback" not in done.stdout


@pytest.mark.slow
def test_a_killed_rank_ends_the_other_and_one_process_goes_on(alone: Path, tmp_path: Path) -> None:
    """kill -9 while weights are kept in parts; then the plan's run by one process, from the save of two."""
    running = start(tmp_path, every_kind(sharding="full"))
    wait_until(lambda: [name for name in saves(tmp_path) if name >= "step-000000010" and begun(tmp_path)], running)
    pair = ranks(running.pid)
    killed = time.monotonic()
    os.kill(pair[1], signal.SIGKILL)
    _, told = running.communicate(timeout=90)
    assert time.monotonic() - killed < 60
    assert running.returncode == 1
    assert "lost touch with another process" in told and "run again to continue" in told and "Traceback" not in told
    assert not any(Path(f"/proc/{process}").exists() for process in pair.values())
    made = steps_of(tmp_path)
    execute(every_kind(), tmp_path)
    assert 10 <= made < STEPS
    check(tmp_path, alone)


def begun(directory: Path) -> bool:
    return (directory / "out/events.jsonl").exists() and steps_of(directory) > 0


def steps_of(directory: Path) -> int:
    return max((event["step"] for event in events(directory, MASK)), default=0)


@pytest.mark.slow
def test_two_processes_go_on_from_the_save_of_one(alone: Path, tmp_path: Path) -> None:
    graph = sprunec.lower(sprunec.read_plan(write(tmp_path, every_kind())))
    with pytest.raises(KeyboardInterrupt):
        sprunec.execute(graph, tmp_path / "out", stop=lambda: begun(tmp_path) and steps_of(tmp_path) >= 7)
    assert [name.endswith(".pt") for name in saves(tmp_path)] == [True]
    done = launch(tmp_path, every_kind(sharding="full"))
    assert done.returncode == 4
    check(tmp_path, alone)


@pytest.mark.parametrize("mistake", ["shares", pytest.param("plan", marks=pytest.mark.slow)])
def test_what_rank_0_refuses_is_said_once_and_ends_all(mistake: str, tmp_path: Path) -> None:
    content = plan({"pass": "train", "steps": 1 if mistake == "shares" else -1})
    content["data"]["batch_size"] = 3
    done = launch(tmp_path, content)
    assert done.returncode == 3
    words = "cannot be divided equally among 2 processes" if mistake == "shares" else "/passes/0/steps"
    assert done.stderr.count(words) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "full"])
@pytest.mark.parametrize(("first", "second"), [(2, 2), (2, 1), (1, 2), (2, 4)])
def test_a_stopped_run_goes_on_in_another_world(
    first: int, second: int, sharding: str, alone: Path, tmp_path: Path
) -> None:
    running = start(tmp_path, every_kind(sharding=sharding), first)
    wait_until(lambda: begun(tmp_path), running)
    running.send_signal(signal.SIGTERM)
    _, told = running.communicate(timeout=90)
    assert running.returncode == 130 and "run the same command again" in told
    assert read_report(tmp_path / "out")["status"] == "interrupted"
    assert len(saves(tmp_path)) == 1
    assert launch(tmp_path, every_kind(sharding=sharding), second).returncode == 4
    check(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_a_rank_that_no_longer_moves_is_given_up(which: int, alone: Path, tmp_path: Path) -> None:
    running = start(tmp_path, every_kind(sharding="full"))
    wait_until(lambda: begun(tmp_path), running)
    pair = ranks(running.pid)
    os.kill(pair[which], signal.SIGSTOP)
    stopped = time.monotonic()
    wait_until(lambda: not Path(f"/proc/{pair[1 - which]}").exists(), running)
    assert time.monotonic() - stopped < 60
    _, told = running.communicate(timeout=120)  # torchrun waits half a minute for the one that it cannot ask to end
    assert f"rank {which} has sent no heartbeat" in told
    assert launch(tmp_path, every_kind(sharding="full")).returncode == 4
    check(tmp_path, alone)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_other_precisions_agree_as_far_as_they_carry(precision: str, tmp_path: Path) -> None:
    """In fp16 the scale starts so high that steps are left out: on all ranks, or weights would part."""
    folders = {}
    for name, sharding in (("alone", None), ("none", "none"), ("full", "full")):
        content = every_kind(precision=precision, **({} if sharding is None else {"sharding": sharding}))
        content["training"] |= {"loss_scale": 2.0**24} if precision == "fp16" else {}
        folders[name] = tmp_path / name
        folders[name].mkdir()
        if sharding is None:
            execute(content, folders[name])
        else:
            assert launch(folders[name], content).returncode == 4
    for name in ("none", "full"):
        last = events(folders[name])[-1], events(folders["alone"])[-1]
        assert last[0]["loss"] == pytest.approx(last[1]["loss"], abs=0.1)
        assert precision == "bf16" or any(event.get("skipped") for event in events(folders[name]))
