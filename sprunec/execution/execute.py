"""Run a graph: skip what the store has, do the rest, keep the report true after every pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sprunec.checkpoint.provenance import write_provenance
from sprunec.durable import forget
from sprunec.engines.world import World
from sprunec.errors import ComparisonError, InputError, PassError, SprunecError, disk_words, remedied
from sprunec.execution.events import Events
from sprunec.execution.lock import alone
from sprunec.execution.paths import check_places
from sprunec.execution.progress import Watcher
from sprunec.execution.publish import publish, unpublish
from sprunec.execution.ranks import JOIN, check_shares
from sprunec.execution.report import Report, versions, with_notes
from sprunec.execution.store import Artifact, Store
from sprunec.file_digests import file_stamp
from sprunec.graph.graph import Graph, Node
from sprunec.interrupts import postponed, was_interrupted
from sprunec.passes.job import Job
from sprunec.plan.declared import PASSES
from sprunec.unexpected import FILE, UnexpectedError, explained, is_foreseen, own_words


def execute(
    graph: Graph,
    out: str | Path,
    watcher: Watcher | None = None,
    stop: Callable[[], bool] = lambda: False,
    world: World | None = None,
) -> Report:
    """Run what is not in `out`'s store yet; publish masks, recipe and model when all of it is done.

    Args:
        stop: asked between steps and between passes; once it says so, what runs is saved, and the run ends.
        world: the processes that train together, of which this one is rank 0; None: it is alone.

    Raises:
        KeyboardInterrupt: the run was stopped; run again to continue.
        InputError: a file or the device is missing; nothing was done.
        SprunecError: a pass failed; the report says which, and what was finished stays.
    """
    out, watcher, world = Path(out), watcher or Watcher(), world or World()
    device = _check_ready(graph, world)
    check_places(graph, out)
    with alone(out):
        run = Run(graph, out, Store(out / "store", watcher.message), watcher, device, stop, world)
        run.begin()
        try:
            world.announce(JOIN)
            world.join(device, graph.engine["timeout"])
            for index, node in enumerate(graph.nodes, start=1):
                run.node(index, node)
            run.publish()
        except BaseException as error:
            told = explained(error, f"the run in {out}", out)
            with suppress(OSError):  # a disk that takes no report, either: what stopped the run is the error to tell of
                run.report.end(*_failure(told))
            raise told from told.__cause__
        failed = run.report.failed_forms()
        status = "comparison-failed" if failed else "done" if run.report.on_target() else "target-missed"
        run.report.end(status, "; ".join(failed.values()) or None)
        return run.report


def _check_ready(graph: Graph, world: World) -> str:
    """Find the device that `auto` means here; raise for what would stop the run later."""
    from sprunec.engines.device import Place, check_engine

    for node in graph.nodes:
        for path in (path for paths in node.files.values() for path in paths):
            if not path.exists():
                raise InputError.at(path, "there is no such file", "give its path in the plan", code="missing-file")
        if (check := PASSES[node.pass_].check) is not None:
            check(node)
    if world.size > 1:
        check_shares(graph, world.size)
    place = Place.of(graph.device, "fp32", world)
    if any(PASSES[node.pass_].trains for node in graph.nodes):
        check_engine(graph.engine, place)
    return str(place.device)


def _failure(error: BaseException) -> tuple[str, str | None]:
    """Give the status of a run that an error has ended, and what the report says of it."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", None
    message = disk_words(error) if isinstance(error, OSError) else str(error) or type(error).__name__
    return "comparison-failed" if isinstance(error, ComparisonError) else "failed", message


@dataclass
class Run:
    """A graph on its way, node by node.

    Attributes:
        done: by node, what is finished.
    """

    graph: Graph
    out: Path
    store: Store
    watcher: Watcher
    device: str
    stop: Callable[[], bool]
    world: World
    done: dict[str, Artifact] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.report, self.events = Report.start(self.graph, self.out), Events(self.out / "events.jsonl")

    def begin(self) -> None:
        """Tidy what earlier runs have left in OUT, and bring back the events of what is done or begun."""
        store, nodes = self.store, self.graph.nodes
        store.sweep()
        store.refer(self.graph.plan, nodes)
        found = {n.name: store.events(n) for n in nodes if store.has(n) or store.partial(n).is_dir()}
        self.events.restore(found)
        for node in (node for node in nodes if found.get(node.name, "") is None):
            store.mend_events(node, self.events.of(node.name))
        if not all(store.has(node) for node in nodes):
            unpublish(self.out)
        self.report.save()
        forget(self.out / FILE)

    def node(self, index: int, node: Node) -> None:
        """Find a node's artifact in the store, or make it; tell the report and the user."""
        if self.stop():
            raise KeyboardInterrupt
        total, started = len(self.graph.nodes), time.perf_counter()
        self.watcher.node_started(index, total, node.name)
        try:
            artifact = self.store.find(node)
            cached = artifact is not None
            artifact = artifact or self._make(node)
        except SprunecError as error:
            message = str(explained(error, node.name, self.out))
            self.report.failed(node, error)
            if not PASSES[node.pass_].fails_alone or self.report.has_no_form():
                raise
            self.watcher.node_failed(index, total, node.name, message.removeprefix(f"{node.name}: "))
            return
        except Exception as error:
            if is_foreseen(error):
                raise
            raise UnexpectedError(_doing(node), error) from error
        self.done[node.name], seconds = artifact, time.perf_counter() - started
        self.report.add(node, artifact, cached, seconds)
        self.report.save()
        metrics = with_notes(node, artifact.metrics)
        self.watcher.node_finished(index, total, node.name, cached=cached, seconds=seconds, metrics=metrics)
        self._write(node)

    def _make(self, node: Node) -> Artifact:
        world = self.world if PASSES[node.pass_].trains else World()
        with self.store.writing() as directory:
            job = self._job(node, directory, world)
            world.announce(str(node.digest))
            # Who has lost another rank says so before it is told to end.
            with postponed() if world.size > 1 else nullcontext(), _named(node, directory, world):
                metrics = PASSES.home(node.pass_).run(job)
            return self._keep(node, directory, metrics)

    def _job(self, node: Node, directory: Path, world: World) -> Job[Any]:
        def tell(event: dict[str, Any]) -> None:
            self.events.write({"node": node.name, **event})
            self.watcher.step(event)

        saves = None
        if node.checkpoint_every is not None:
            from sprunec.engines.checkpoints import Saves

            partial, every = self.store.partial(node), node.checkpoint_every
            saves = Saves(partial, every, self.stop, tell=self.watcher.message, world=self.world)
        inputs = {role: self.done[name].path for role, name in node.inputs.items()}
        return Job(node.options, inputs, node.files, directory, self.device, tell, saves, self.graph.engine, world)

    def _keep(self, node: Node, directory: Path, metrics: dict[str, Any]) -> Artifact:
        """Put into the store what a pass has made, unless a file that it was made of is not what its digest names."""
        for path, stamp in node.stamps.items():
            if file_stamp(path) != stamp:
                raise PassError(f"{node.name}: {path} has changed since the run began; run again")
        digests = {role: self.graph.node(name).digest for role, name in node.inputs.items()}
        made = datetime.now(UTC).isoformat(timespec="seconds")
        note = {"inputs": digests, "metrics": metrics, "versions": versions(), "device": self.device, "made": made}
        return self.store.keep(node, directory, note, self.events.of(node.name))

    def _write(self, node: Node) -> None:
        """Write the files that the user asked for: only now that the store has what goes into them.

        So a stop cannot spoil one. Done for a node that the store had, too: the file may be gone, or may never have
        been written.
        """
        for role, path in node.writes.items():
            names = {"source": self.graph.roles.source} | dict(node.inputs)
            inputs = {name: self.done[giver].path for name, giver in names.items()}
            try:
                PASSES.home(node.pass_).write(role, self.done[node.name].path, inputs, path)
                if node.provenance:
                    write_provenance(path, node.provenance)
            except OSError as error:
                file = error.filename2 or error.filename or path
                raise PassError(f"{node.name}: {file} cannot be written: {remedied(error)}") from error
            except RuntimeError as error:
                raise PassError(f"{node.name}: {path} cannot be written: {own_words(error)}") from error

    def publish(self) -> None:
        """Copy what users look for out of the store."""
        emitted = self.done.get(self.graph.roles.emitted)
        made = str(emitted.manifest["made"]) if emitted is not None else None
        artifacts = {name: artifact.path for name, artifact in self.done.items()}
        publish(self.graph, self.out, artifacts, self.report.origin(made), self.report.failed_forms())


@contextmanager
def _named(node: Node, directory: Path, world: World) -> Iterator[None]:
    """Name the pass in whatever goes wrong in it."""
    try:
        yield
    except SprunecError:
        raise
    except Exception as error:
        if was_interrupted(error):
            raise KeyboardInterrupt from error
        if isinstance(error, OSError) and is_foreseen(error):
            raise PassError(f"{node.name}: {disk_words(error, directory)}") from error
        blamed = world.blame(error)
        if blamed is not None:
            raise PassError(f"{node.name}: {blamed}") from error
        raise UnexpectedError(_doing(node), error) from error


def _doing(node: Node) -> str:
    return f"{node.name} ({node.about})" if node.about else node.name
