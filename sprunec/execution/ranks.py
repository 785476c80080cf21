"""A run of several processes: every rank lowers the same plan, and rank 0 alone does what does not train.

The others read what rank 0 has made, so all machines of a run must see OUT and the plan's files under the same paths.
Only rank 0 knows what its store has: it announces each node that all ranks train together, by its digest.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.compiler.lower import lower
from sprunec.engines.processes.world import World
from sprunec.errors import InputError, PassError
from sprunec.execution.store import Store
from sprunec.graph.graph import Graph, Node
from sprunec.interrupts import interrupts
from sprunec.passes.job import Job
from sprunec.plan.declared import PASSES
from sprunec.unexpected import explained, log

if TYPE_CHECKING:
    from sprunec.engines.processes.distributed import ProcessGroup
    from sprunec.plan.plan import Plan

Stop = Callable[[], bool]
Tell = Callable[[dict[str, Any]], None]
JOIN = "join"  # the first turn: all ranks open the channel of collectives


def check_shares(graph: Graph, size: int) -> None:
    """Refuse batches that ranks cannot divide equally: each must have the same number of parts of every batch.

    Raises:
        InputError: the sequences of a batch cannot be divided so.
    """
    for node in (node for node in graph.nodes if PASSES[node.pass_].trains):
        sequences, parts = node.options.batch_size, node.options.accumulate
        if sequences % (size * parts):
            batch = f"{sequences} sequences in {parts} part(s)"
            message = f"{node.name}: {batch} cannot be divided equally among {size} processes"
            hint = f"make data.batch_size a multiple of {size * parts}, or start another number of processes"
            raise InputError.in_option("/data/batch_size", message, hint, code="uneven-shares")


def follow(read: Callable[[], Plan], out: Path | None) -> int:
    """Run a plan as a rank other than 0: train with it until it lets this process go; return the exit code.

    Args:
        read: reads the plan; called once rank 0 has found it good, and lowered it.
        out: None: the plan's own folder among the runs.
    """
    from sprunec.engines.device import Place
    from sprunec.engines.processes.distributed import ProcessGroup

    group = ProcessGroup()
    with interrupts(lambda text: None, at_once=False, alone=False) as stop:  # when to end is for rank 0 to say
        try:
            with group:
                if group.next_turn(stop) is not None:
                    graph = lower(read())
                    store = Store((out or Path("runs") / graph.plan) / "store")
                    device = str(Place.of(graph.device, "fp32", group).device)
                    group.join(device, graph.engine["timeout"])
                    while (digest := group.next_turn(stop)) is not None:
                        node = _node(graph, digest)
                        with tempfile.TemporaryDirectory(prefix="sprunec-rank-") as scratch:
                            job = job_of(node, graph, store, Path(scratch), device, group, stop, lambda event: None)
                            with suppress(KeyboardInterrupt):  # all have stopped; rank 0 is still saving
                                PASSES.home(node.pass_).run(job)
        except KeyboardInterrupt:
            return 0
        except Exception as error:
            return explain(group, error)
    return 0


def _node(graph: Graph, digest: str) -> Node:
    for node in graph.nodes:
        if node.digest == digest:
            return node
    raise PassError("this process finds another plan or other files than rank 0; run again")


def job_of(
    node: Node, graph: Graph, store: Store, out: Path, device: str, world: World, stop: Stop, report: Tell
) -> Job[Any]:
    """Hand a pass what it needs; its inputs are in the store."""
    inputs, saves = {role: store.root / str(graph.node(name).digest) for role, name in node.inputs.items()}, None
    every = 1 if PASSES[node.pass_].by_block else node.checkpoint_every
    if every is not None:
        from sprunec.engines.checkpoints import Saves

        saves = Saves(store.partial(node), every, stop, tell=store.tell, world=world)
    return Job(node.options, inputs, node.files, out, device, report, saves, graph.engine, world)


def explain(group: ProcessGroup, error: BaseException) -> int:
    """Have rank 0 tell what this rank has met; only if there is no rank 0 any more this one speaks; the exit code."""
    from sprunec.engines.processes.distributed import lost

    message = gone = lost(error)
    if gone is None:
        message = str(explained(error, "its part of the pass", None))
        log.debug("rank %d", group.rank, exc_info=error)
        group.complain(message)
    if not group.is_over():
        print(f"error: rank {group.rank}: {message}", file=sys.stderr, flush=True)
    return 1
