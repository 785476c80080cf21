"""Run a graph: skip what the store has, do the rest, keep the report true after every pass."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.checkpoint.provenance import write_provenance
from sprunec.durable import forget
from sprunec.engines.processes.world import World
from sprunec.errors import ComparisonError, InputError, PassError, SprunecError, disk_words, remedied
from sprunec.execution.events import Events
from sprunec.execution.fits import check_fits
from sprunec.execution.lock import alone
from sprunec.execution.paths import check_places
from sprunec.execution.progress import Watcher
from sprunec.execution.publish import publish, unpublish
from sprunec.execution.ranks import JOIN, Stop, check_shares, job_of
from sprunec.execution.report import Report, versions
from sprunec.execution.store import Artifact, Store
from sprunec.file_digests import file_stamp
from sprunec.graph.graph import Graph, Node
from sprunec.heap import share_heap, trim_heap
from sprunec.interrupts import postponed, was_interrupted
from sprunec.plan.declared import PASSES
from sprunec.unexpected import FILE, UnexpectedError, explained, is_foreseen, own_words

if TYPE_CHECKING:
    from sprunec.engines.device import Place


def execute(
    graph: Graph,
    out: str | Path,
    watcher: Watcher | None = None,
    stop: Stop = lambda: False,
    world: World | None = None,
) -> Report:
    """Run what is not in `out`'s store yet; publish masks, recipe and model when all of it is done.

    Args:
        stop: asked between steps and between passes; once it says so, what runs is saved, and the run ends.
        world: the processes that train together, of which this one is rank 0; None: it is alone.

    Raises:
        KeyboardInterrupt: the run was stopped; run again to continue.
        InputError: a file or the device is missing; nothing was done.
        PassError: the machine is too small; nothing was done.
        SprunecError: a pass failed; the report says which, and what was finished stays.
    """
    out, watcher, world = Path(out), watcher or Watcher(), world or World()
    store = Store(out / "store")
    place = _check_ready(graph, store, world)
    device = str(place.device)
    check_places(graph, out)
    check_fits(graph, store, device, place.memory(world.size), world.size)
    share_heap()
    with alone(out):
        run = Run(graph, out, watcher, device, stop, world)
        run.begin()
        try:
            world.announce(JOIN)
            world.join(device, graph.engine["timeout"])
            for index, node in enumerate(graph.nodes, start=1):
                run.node(index, node)
            publish(graph, out, run.done, run.report)
        except BaseException as error:
            told = explained(error, f"the run in {out}", out)
            words = disk_words(told) if isinstance(told, OSError) else str(told) or type(told).__name__
            status = "comparison-failed" if isinstance(told, ComparisonError) else "failed"
            ending = ("interrupted", None) if isinstance(told, KeyboardInterrupt) else (status, words)
            with suppress(OSError):  # a disk that takes no report, either: what stopped the run is the error to tell of
                run.report.end(*ending)
            raise told from told.__cause__
        failed, settled = run.report.failed_forms(), all(row["settled"] for row in run.report.data["budgets"])
        status = "comparison-failed" if failed else "done" if settled else "target-missed"
        run.report.end(status, "; ".join(failed.values()) or None)
        return run.report


def _check_ready(graph: Graph, store: Store, world: World) -> Place:
    """Find the device that `auto` means here; raise for what would stop the run later."""
    from sprunec.engines.choose import check_engine
    from sprunec.engines.device import Place

    for node in graph.nodes:
        for path in (path for paths in node.files.values() for path in paths):
            if not path.exists():
                raise InputError.at(path, "there is no such file", "give its path in the plan", code="missing-file")
        if (check := PASSES[node.pass_].check) is not None and not store.has(node):
            check(node)
    if world.size > 1:
        check_shares(graph, world.size)
    place = Place.of(graph.device, "fp32", world)
    if any(PASSES[node.pass_].trains for node in graph.nodes):
        check_engine(graph.engine, place)
    return place


@dataclass
class Run:
    """A graph on its way, node by node; `done` has the artifact of each that is finished."""

    graph: Graph
    out: Path
    watcher: Watcher
    device: str
    stop: Stop
    world: World

    def __post_init__(self) -> None:
        self.store, self.events = Store(self.out / "store", self.watcher.message), Events(self.out / "events.jsonl")
        self.report, self.done = Report.start(self.graph, self.out, self.device), dict[str, Artifact]()

    def begin(self) -> None:
        """Tidy what earlier runs have left in OUT, and bring back the events of what is done or begun."""
        store, nodes = self.store, self.graph.nodes
        store.sweep()
        store.refer(self.graph.plan, nodes)
        found = {n.name: store.events(n) for n in nodes if store.has(n) or store.partial(n).is_dir()}
        self.events.restore(found)
        if lost := [node for node in nodes if found.get(node.name, "") is None]:
            lines = self.events.by_node()
            for node in lost:
                store.mend_events(node, lines.get(node.name, ""))
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
            cached = (found := self.store.find(node)) is not None
            artifact = found or self._make(node)
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
        trim_heap()
        self.done[node.name], seconds = artifact, time.perf_counter() - started
        metrics = self.report.add(node, artifact, cached, seconds)
        self.report.save()
        self.watcher.node_finished(index, total, node.name, cached=cached, seconds=seconds, metrics=metrics)
        self._write(node)

    def _make(self, node: Node) -> Artifact:
        """Do the pass; keep what it made unless a file that this was made of is not what its digest names."""
        world = self.world if PASSES[node.pass_].trains else World()

        def tell(event: dict[str, Any]) -> None:
            if PASSES[node.pass_].trains:
                self.events.write({"node": node.name, **event})
            self.watcher.step(event)

        with self.store.writing() as directory:
            job = job_of(node, self.graph, self.store, directory, self.device, world, self.stop, tell)
            world.announce(str(node.digest))
            # Who has lost another rank says so before it is told to end.
            with postponed() if world.size > 1 else nullcontext(), _named(node, directory, world):
                metrics = PASSES.home(node.pass_).run(job)
            for path, stamp in node.stamps.items():
                if file_stamp(path) != stamp:
                    raise PassError(f"{node.name}: {path} has changed since the run began; run again")
            digests = {role: self.graph.node(name).digest for role, name in node.inputs.items()}
            made = datetime.now(UTC).isoformat(timespec="seconds")
            note = {"inputs": digests, "metrics": metrics, "versions": versions(), "device": self.device, "made": made}
            return self.store.keep(node, directory, note, self.events.by_node().get(node.name, ""))

    def _write(self, node: Node) -> None:
        """Write the files that the user asked for: only now that the store has what goes into them.

        So a stop cannot spoil one. Done for a node that the store had, too: the file may be gone, or may never have
        been written.
        """
        givers = {"source": self.graph.roles.source, **node.inputs}
        for role, path in node.writes.items():
            inputs = {name: self.done[giver].path for name, giver in givers.items()}
            try:
                PASSES.home(node.pass_).write(role, self.done[node.name].path, inputs, path)
                if node.provenance:
                    write_provenance(path, node.provenance)
            except (OSError, RuntimeError) as error:
                file, why = str(path), own_words(error)
                if isinstance(error, OSError):
                    file, why = error.filename2 or error.filename or file, remedied(error)
                raise PassError(f"{node.name}: {file} cannot be written: {why}") from error


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
        blamed = (
            disk_words(error, directory) if isinstance(error, OSError) and is_foreseen(error) else world.blame(error)
        )
        if blamed is not None:
            raise PassError(f"{node.name}: {blamed}") from error
        raise UnexpectedError(_doing(node), error) from error


def _doing(node: Node) -> str:
    return f"{node.name} ({node.about})" if node.about else node.name
