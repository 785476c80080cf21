"""Run a graph: skip what the store has, do the rest, keep the report true after every pass."""

from __future__ import annotations

import importlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sprunec.errors import ComparisonError, InputError, PassError, SprunecError
from sprunec.graph.graph import Graph, Node
from sprunec.graph.report import Report, versions
from sprunec.graph.store import Artifact, Store
from sprunec.passes.job import Job
from sprunec.passes.table import PASSES


class Watcher(Protocol):
    """Who is told how a run goes."""

    def node_started(self, index: int, total: int, name: str) -> None: ...

    def node_finished(
        self, index: int, total: int, name: str, *, cached: bool, seconds: float, metrics: Mapping[str, Any]
    ) -> None: ...

    def step(self, event: Mapping[str, Any]) -> None: ...


class Nobody:
    """Watches nothing."""

    def node_started(self, index: int, total: int, name: str) -> None: ...

    def node_finished(
        self, index: int, total: int, name: str, *, cached: bool, seconds: float, metrics: Mapping[str, Any]
    ) -> None: ...

    def step(self, event: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Outcome:
    node: Node
    artifact: Artifact
    cached: bool
    seconds: float


def execute(graph: Graph, out: str | Path, watcher: Watcher | None = None) -> Report:
    """Run what is not in `out`'s store yet; publish masks, recipe and model when all of it is done.

    Raises:
        SprunecError: a pass failed; the report says which, and what was finished stays.
    """
    out, watcher = Path(out), watcher or Nobody()
    report = Report.start(graph, out)
    report.save()
    try:
        outcomes = _run(graph, out, watcher, report)
        _publish(graph, out, outcomes)
    except KeyboardInterrupt:
        report.end("interrupted")
        raise
    except ComparisonError as error:
        report.end("comparison-failed", str(error), error.metrics)
        raise
    except BaseException as error:
        report.end("failed", str(error) or type(error).__name__)
        raise
    report.end("done" if report.on_target() else "target-missed")
    return report


def _run(graph: Graph, out: Path, watcher: Watcher, report: Report) -> dict[str, Outcome]:
    store, events = Store(out / "store"), Events(out / "events.jsonl")
    outcomes: dict[str, Outcome] = {}
    total = len(graph.nodes)
    for index, node in enumerate(graph.nodes, start=1):
        watcher.node_started(index, total, node.name)
        outcome = _outcome(graph, node, store, outcomes, events, watcher)
        outcomes[node.name] = outcome
        report.add(outcome.node, outcome.artifact, outcome.cached, outcome.seconds)
        report.save()
        watcher.node_finished(
            index, total, node.name, cached=outcome.cached, seconds=outcome.seconds, metrics=outcome.artifact.metrics
        )
    return outcomes


def _outcome(
    graph: Graph, node: Node, store: Store, done: Mapping[str, Outcome], events: Events, watcher: Watcher
) -> Outcome:
    started = time.perf_counter()
    found = store.find(node)
    if found is not None:
        return Outcome(node, found, True, time.perf_counter() - started)
    if node.digest is None:
        raise InputError.at(next(iter(node.files.values()), ("a file",))[0], "there is no such file")
    events.begin(node.name)

    def tell(event: dict[str, Any]) -> None:
        events.write({"node": node.name, **event})
        watcher.step(event)

    with store.writing() as directory:
        inputs = {role: done[name].artifact.path for role, name in node.inputs.items()}
        job = Job(node.options, inputs, node.files, directory, graph.device, tell)
        metrics = _call(node, job)
        artifact = store.keep(node, directory, metrics, versions())
    return Outcome(node, artifact, False, time.perf_counter() - started)


def _call(node: Node, job: Job) -> dict[str, Any]:
    """Import the pass when its turn comes, and name it in whatever goes wrong."""
    run: Callable[[Job], dict[str, Any]] = importlib.import_module(f"sprunec.passes.{PASSES[node.pass_].module}").run
    try:
        return run(job)
    except SprunecError:
        raise
    except OSError as error:
        raise PassError(f"{node.name}: {error.strerror or error}: {error.filename or job.out}") from error
    except (MemoryError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PassError(f"{node.name}: {first}") from error


class Events:
    """The file of one line a training step; a node that runs again replaces its own lines."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, node: str) -> None:
        if not self.path.exists():
            return
        lines = self.path.read_text().splitlines()
        kept = [line for line in lines if _node_of(line) not in (node, None)]
        self.path.write_text("".join(f"{line}\n" for line in kept))

    def write(self, event: Mapping[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(event) + "\n")


def _node_of(line: str) -> str | None:
    """None for a line that an interruption cut off."""
    try:
        name = json.loads(line)["node"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(name)


def _publish(graph: Graph, out: Path, outcomes: Mapping[str, Outcome]) -> None:
    """Copy what users look for out of the store: masks, recipe, the emitted forms."""
    final = outcomes[graph.roles["final"]].artifact.path
    source = outcomes[graph.roles["source"]].artifact.path
    if "origin" in graph.roles:
        from sprunec.masks.files import write_masks
        from sprunec.model.checkpoint import read_kept

        write_masks(out / "masks", read_kept(source), read_kept(final))
        origin = outcomes[graph.roles["origin"]].artifact.path / "origin"
        shutil.copyfile(origin / "recipe.json", out / "recipe.json")
    if "emitted" in graph.roles:
        emitted = outcomes[graph.roles["emitted"]].artifact.path
        for form in (path for path in emitted.iterdir() if path.is_dir()):
            _replace_tree(form, out / "model" / form.name)


def _replace_tree(source: Path, target: Path) -> None:
    aside = target.with_name(f".{target.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(source, aside)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
