"""Run a graph: skip what the store has, do the rest, keep the report true after every pass."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.durable import forget
from sprunec.engines.world import World
from sprunec.errors import ComparisonError, InputError, PassError, SprunecError, disk_words, remedied
from sprunec.graph.events import Events
from sprunec.graph.graph import Graph, Node, file_stamp
from sprunec.graph.lock import alone
from sprunec.graph.notes import origin_of
from sprunec.graph.paths import check_places
from sprunec.graph.progress import Watcher
from sprunec.graph.publish import publish, unpublish
from sprunec.graph.ranks import JOIN, check_shares
from sprunec.graph.report import Report, versions, with_notes
from sprunec.graph.store import Artifact, Store
from sprunec.interrupts import postponed, was_interrupted
from sprunec.passes.job import Job
from sprunec.passes.table import PASSES
from sprunec.plan.weights_notes import write_provenance
from sprunec.unexpected import FILE, UnexpectedError, explained, is_foreseen, own_words

if TYPE_CHECKING:
    from sprunec.engines.checkpoints import Saves


@dataclass(frozen=True)
class Workshop:
    """What every node of a run works with."""

    store: Store
    events: Events
    watcher: Watcher
    device: str
    stop: Callable[[], bool]
    graph: Graph
    world: World


@dataclass(frozen=True)
class Outcome:
    node: Node
    artifact: Artifact
    cached: bool
    seconds: float


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
    out, world = Path(out), world or World()
    device = _check_ready(graph, world)
    check_places(graph, out)
    with alone(out):
        return _execute(graph, out, watcher or Watcher(), device, stop, world)


def _check_ready(graph: Graph, world: World) -> str:
    """The device that `auto` means here; raises for what would stop the run later."""
    from sprunec.engines.device import Place
    from sprunec.passes.bench import check_engine

    for node in graph.nodes:
        for path in (path for paths in node.files.values() for path in paths):
            if not path.exists():
                raise InputError.at(path, "there is no such file", "give its path in the plan", code="missing-file")
        if node.pass_ == "load-mask":
            from sprunec.bmcook.masks.mask_forms import check_mask_files

            check_mask_files(node.files["paths"])
    if world.size > 1:
        check_shares(graph, world.size)
    place = Place.of(graph.device, "fp32", world)
    if any(PASSES[node.pass_].trains for node in graph.nodes):
        check_engine(graph.engine, place)
    return str(place.device)


def _execute(graph: Graph, out: Path, watcher: Watcher, device: str, stop: Callable[[], bool], world: World) -> Report:
    report, events = Report.start(graph, out), Events(out / "events.jsonl")
    store = Store(out / "store", watcher.message)
    store.sweep()
    store.refer(graph.plan, graph.nodes)
    _restore(events, store, graph)
    if not all(store.has(node) for node in graph.nodes):
        unpublish(out)
    report.save()
    forget(out / FILE)
    try:
        world.announce(JOIN)
        world.join(device, graph.engine["timeout"])
        outcomes = _run(graph, Workshop(store, events, watcher, device, stop, graph, world), report)
        artifacts = {name: outcome.artifact for name, outcome in outcomes.items()}
        emitted = artifacts.get(graph.roles.get("emitted", ""))
        made = str(emitted.manifest["made"]) if emitted is not None else None
        origin = origin_of(graph, report.data, made)
        publish(
            graph, out, {name: artifact.path for name, artifact in artifacts.items()}, origin, report.failed_forms()
        )
    except BaseException as error:
        told = explained(error, f"the run in {out}", out)
        with suppress(OSError):  # a disk that takes no report, either: what stopped the run is the error to tell of
            report.end(_status(told), _words(told), getattr(told, "metrics", None))
        raise told from told.__cause__
    report.end(_ending(report), "; ".join(report.failed_forms().values()) or None)
    return report


def _ending(report: Report) -> str:
    if report.failed_forms():
        return "comparison-failed"
    return "done" if report.on_target() else "target-missed"


def _restore(events: Events, store: Store, graph: Graph) -> None:
    """The lines of what is done or begun; the file and the store mend each other."""
    found = {n.name: store.events(n) for n in graph.nodes if store.has(n) or store.partial(n).is_dir()}
    events.restore(found)
    for node in (node for node in graph.nodes if found.get(node.name, "") is None):
        store.mend_events(node, events.of(node.name))


def _status(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return "comparison-failed" if isinstance(error, ComparisonError) else "failed"


def _words(error: BaseException) -> str | None:
    if isinstance(error, KeyboardInterrupt):
        return None
    return disk_words(error) if isinstance(error, OSError) else str(error) or type(error).__name__


def _run(graph: Graph, shop: Workshop, report: Report) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    total, watcher = len(graph.nodes), shop.watcher
    for index, node in enumerate(graph.nodes, start=1):
        if shop.stop():
            raise KeyboardInterrupt
        watcher.node_started(index, total, node.name)
        try:
            outcome = _outcome(node, shop, outcomes)
        except SprunecError as error:
            words = str(explained(error, node.name, report.out))
            report.form_failed(node, error)
            if not PASSES[node.pass_].fails_alone or report.has_no_form():
                raise
            watcher.node_failed(index, total, node.name, words.removeprefix(f"{node.name}: "))
            continue
        except Exception as error:
            if is_foreseen(error):
                raise
            raise UnexpectedError(_doing(node), error) from error
        outcomes[node.name] = outcome
        report.add(outcome.node, outcome.artifact, outcome.cached, outcome.seconds)
        report.save()
        metrics = with_notes(node, outcome.artifact.metrics)
        watcher.node_finished(index, total, node.name, cached=outcome.cached, seconds=outcome.seconds, metrics=metrics)
        _write(node, report.graph.roles["source"], outcomes)
    return outcomes


def _write(node: Node, source: str, done: Mapping[str, Outcome]) -> None:
    """The files that the user asked for: only now that the store has what goes into them, so a stop cannot spoil one.

    Done for a node that the store had, too: the file may be gone, or may never have been written.
    """
    for role, path in node.writes.items():
        names = {"source": source} | dict(node.inputs)
        inputs = {name: done[giver].artifact.path for name, giver in names.items()}
        module = importlib.import_module(f"sprunec.passes.{PASSES[node.pass_].module}")
        try:
            module.write(role, done[node.name].artifact.path, inputs, path)
            if node.provenance:
                write_provenance(path, node.provenance)
        except (OSError, RuntimeError) as error:
            if isinstance(error, OSError):
                file, reason = error.filename2 or error.filename or path, remedied(error)
            else:
                file, reason = path, own_words(error)
            raise PassError(f"{node.name}: {file} cannot be written: {reason}") from error


def _outcome(node: Node, shop: Workshop, done: Mapping[str, Outcome]) -> Outcome:
    started = time.perf_counter()
    found = shop.store.find(node)
    if found is not None:
        return Outcome(node, found, True, time.perf_counter() - started)

    def tell(event: dict[str, Any]) -> None:
        shop.events.write({"node": node.name, **event})
        shop.watcher.step(event)

    with shop.store.writing() as directory:
        inputs = {role: done[name].artifact.path for role, name in node.inputs.items()}
        world = shop.world if PASSES[node.pass_].trains else World()
        saves, engine = _saves(node, shop), shop.graph.engine
        job = Job(node.options, inputs, node.files, directory, shop.device, tell, saves, engine, world)
        world.announce(str(node.digest))
        with postponed() if world.size > 1 else nullcontext():  # who has lost another says so, and is told to end
            metrics = _call(node, job)
        _check_unchanged(node)
        digests = {role: done[name].node.digest for role, name in node.inputs.items()}
        made = datetime.now(UTC).isoformat(timespec="seconds")
        note = {"inputs": digests, "metrics": metrics, "versions": versions(), "device": shop.device, "made": made}
        artifact = shop.store.keep(node, directory, note, shop.events.of(node.name))
    return Outcome(node, artifact, False, time.perf_counter() - started)


def _saves(node: Node, shop: Workshop) -> Saves | None:
    if node.checkpoint_every is None:
        return None
    from sprunec.engines.checkpoints import Saves

    directory = shop.store.partial(node)
    return Saves(directory, node.checkpoint_every, shop.stop, tell=shop.watcher.message, world=shop.world)


def _check_unchanged(node: Node) -> None:
    """The digest names what the files held when the graph was made; else the store would lie for ever."""
    for path, stamp in node.stamps.items():
        if file_stamp(path) != stamp:
            raise PassError(f"{node.name}: {path} has changed since the run began; run again")


def _call(node: Node, job: Job) -> dict[str, Any]:
    """Import the pass when its turn comes, and name it in whatever goes wrong."""
    try:
        run: Callable[[Job], dict[str, Any]]
        run = importlib.import_module(f"sprunec.passes.{PASSES[node.pass_].module}").run
        return run(job)
    except SprunecError:
        raise
    except Exception as error:
        if was_interrupted(error):
            raise KeyboardInterrupt from error
        if isinstance(error, OSError) and is_foreseen(error):
            raise PassError(f"{node.name}: {disk_words(error, job.out)}") from error
        blamed = job.world.blame(error)
        if blamed is not None:
            raise PassError(f"{node.name}: {blamed}") from error
        raise UnexpectedError(_doing(node), error) from error


def _doing(node: Node) -> str:
    return f"{node.name} ({node.about})" if node.about else node.name
