"""Masks that come to rest, and masks that will not: told while they learn, and a pass may end early."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sprunec
from sprunec.masks.budgets import CountBudget
from sprunec.masks.lagrangian import Convergence
from tests.helpers.small_plans import EMIT, artifact, mask_pass, plan, write
from tests.runs.test_resume import Counts, fingerprints

BUDGET = CountBudget("num_heads", ((0, "head"),), 100.0, 50.0)  # settled within 2


def watch(sizes: list[float], undecided: int = 0, ramp: float = 0.0) -> tuple[Convergence, list[dict[str, Any]]]:
    convergence = Convergence((BUDGET,), 100, 100, ramp)
    return convergence, [convergence.see(step, [size], undecided) for step, size in enumerate(sizes)]


def test_converged_needs_the_ramp_a_while_of_settled_steps_and_hardly_an_undecided_gate() -> None:
    assert watch([51.0] * 9)[0].converged([51.0]) is False
    assert watch([51.0] * 10)[0].converged([51.0]) is True
    assert watch([51.0] * 10)[0].converged([52.1]) is False
    assert watch([51.0] * 10, ramp=2.0)[0].converged([51.0]) is False
    assert watch([51.0] * 11, ramp=2.0)[0].converged([51.0]) is True
    assert watch([51.0] * 10, undecided=5)[0].converged([51.0]) is True
    assert watch([51.0] * 10, undecided=6)[0].converged([51.0]) is False
    assert watch([51.0] * 9 + [53.0] + [51.0] * 9)[0].converged([51.0]) is False
    assert [event["settled_steps"] for event in watch([51.0, 48.0, 53.0, 52.0])[1]] == [1, 2, 0, 1]


def test_a_size_that_moves_too_slowly_is_told_once_and_one_that_will_arrive_is_not() -> None:
    told = [i for i, event in enumerate(watch([90.0 - 0.3 * i for i in range(100)])[1]) if "warning" in event]
    assert told == [24]
    assert watch([90.0 - 0.4 * i for i in range(99)])[0].warning == ""  # within 2 at the step 95
    words = watch([80.0] * 60)[0].warning
    assert words.startswith("at step 25 of 100 the gates expect 80 of num_heads, and at the rate of the last 25 steps")


def test_a_size_that_swings_around_its_target_is_not_told() -> None:
    assert watch([50.0 + 10 * (1 if step % 20 < 10 else -1) * (step % 10 > 0) for step in range(90)])[0].warning == ""


def test_what_it_remembers_goes_on_from_a_save() -> None:
    sizes = [80.0] * 20 + [75.0] * 20
    whole, events = watch(sizes)
    first, _ = watch(sizes[:22])
    second = Convergence((BUDGET,), 100, 100, 0.0)
    second.load(json.loads(json.dumps(first.state())))
    assert [second.see(22 + i, [size], 0) for i, size in enumerate(sizes[22:])] == events[22:]
    assert second.state() == whole.state()


def test_the_end_says_how_many_steps_were_taken_or_what_is_missing() -> None:
    convergence, _ = watch([80.0] * 60)
    assert convergence.ending(60, [51.0]) == ["settled after 60 of 100 steps; the others were left out"]
    assert convergence.ending(100, [51.0]) == []
    assert convergence.ending(100, [79.5]) == [convergence.warning, "not settled after 100 steps: num_heads 79.5 of 50"]


def content(**options: Any) -> dict[str, Any]:
    quick = {"steps": 60, "criterion": "taylor", "ramp": 0.2, "mask_learning_rate": 2.0} | options
    return plan(
        {"pass": "train", "steps": 20},
        mask_pass("head", {"num_heads": 4}, **quick),
        {"pass": "finetune", "steps": 2},
        EMIT,
        data={"source": "python-docs", "max_length": 18, "batch_size": 2},
        training={"checkpoint_every": 8},
    )


def run(directory: Path, watcher: Any = None, **options: Any) -> dict[str, Any]:
    graph = sprunec.lower(sprunec.read_plan(write(directory, content(**options))))
    return sprunec.execute(graph, directory / "out", watcher).data


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("early")
    run(directory, stop_when_settled=True)
    return directory / "out"


def events_of(out: Path, node: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if node in line["node"]]


def test_a_settled_pass_ends_early_and_the_next_sees_the_data_that_was_planned(early: Path) -> None:
    report = json.loads((early / "report.json").read_text())
    metrics = next(entry["metrics"] for entry in report["passes"] if entry["pass"] == "train-mask")
    events = events_of(early, "train-mask")
    taken = len(events)
    assert 22 <= taken < 60
    assert (metrics["steps"], metrics["planned_steps"], report["status"]) == (taken, 60, "done")
    assert metrics["notes"] == [f"settled after {taken} of 60 steps; the others were left out"]
    assert [event["settled_steps"] for event in events[-10:]] == list(range(1, 11))
    assert events[-1]["budgets"][0]["settled"] and events[-1]["budgets"][0]["distance"] <= 0.5
    assert [event["model_steps"] for event in events_of(early, "finetune")] == [81, 82]
    assert report["budgets"][0]["settled"]


@pytest.mark.slow
def test_a_pass_stopped_and_resumed_ends_at_the_same_step_with_the_same_bytes(early: Path, tmp_path: Path) -> None:
    taken = len(events_of(early, "train-mask"))
    for step in (taken - 5, taken):
        directory = tmp_path / str(step)
        directory.mkdir()
        with pytest.raises(KeyboardInterrupt):
            run(directory, Counts((node_name(early), step)), stop_when_settled=True)
        run(directory, stop_when_settled=True)
        assert fingerprints(directory / "out") == fingerprints(early)
        assert len(events_of(directory / "out", "train-mask")) == taken


def node_name(out: Path) -> str:
    return str(events_of(out, "train-mask")[0]["node"])


def test_the_option_is_part_of_the_digest_only_where_it_is_on(early: Path, tmp_path: Path) -> None:
    def digest(**options: Any) -> str | None:
        graph = sprunec.lower(sprunec.read_plan(write(tmp_path, content(**options))))
        return next(node.digest for node in graph.nodes if node.pass_ == "train-mask")

    assert digest() == digest(stop_when_settled=False) != digest(stop_when_settled=True)
    assert digest(stop_when_settled=True) == artifact(early, "train-mask").name


def test_a_hopeless_pass_warns_while_it_runs_and_in_the_report(tmp_path: Path) -> None:
    report = run(tmp_path, mask_learning_rate=0.002)
    told = [event for event in events_of(tmp_path / "out", "train-mask") if "warning" in event]
    notes = next(entry["metrics"]["notes"] for entry in report["passes"] if entry["pass"] == "train-mask")
    assert report["status"] == "target-missed"
    assert len(told) == 1 and told[0]["step"] < 60
    assert notes[0] == told[0]["warning"]
    assert notes[1].startswith("not settled after 60 steps: head layer 0 ")
