"""A run of several processes: the lead does what is to be done, and calls the others to every pass that trains.

They read no plan and write nothing: an order names the pass, its options, and where the lead's artifacts lie, which all
machines of a run must see under the same paths.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.engines.training import Distillation
from sprunec.errors import InputError
from sprunec.graph.graph import Graph, Node, plain
from sprunec.interrupts import postponed
from sprunec.passes.job import Job
from sprunec.plan.pass_table import PASSES
from sprunec.unexpected import explained, log

if TYPE_CHECKING:
    from sprunec.engines.team import Team


def launched() -> tuple[int, int]:
    """The rank of this process and how many torchrun has started; 0 and 1 if it has started none."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def check_shares(graph: Graph, size: int) -> None:
    """Every rank must have the same number of parts of every batch.

    Raises:
        InputError: the rows of a batch cannot be shared out.
    """
    for node in (node for node in graph.nodes if PASSES[node.pass_].trains):
        rows, parts = node.options.batch_size, node.options.accumulate
        if rows % (size * parts):
            message = f"{node.name}: {rows} rows in {parts} part(s) cannot be shared out equally to {size} processes"
            hint = f"make data.batch_size a multiple of {size * parts}, or start another number of processes"
            raise InputError.at("data", message, hint, code="uneven-shares")


def meet(team: Team, graph: Graph, device: str) -> None:
    """Have all ranks meet in the channel of collectives."""
    timeout = graph.engine["timeout"]
    team.order({"join": {"device": graph.device, "timeout": timeout}})
    team.join(device, timeout)


def order(node: Node, job: Job[Any], device: str) -> dict[str, Any]:
    """What the others need to know to take part in a pass.

    Args:
        device: as the plan has it; each rank finds its own.
    """
    return {
        "pass": node.pass_,
        "options": plain(job.options),
        "inputs": {role: str(path.resolve()) for role, path in job.inputs.items()},
        "files": {role: [str(path.resolve()) for path in paths] for role, paths in job.files.items()},
        "device": device,
        "engine": dict(job.engine),
        "saves": None if job.saves is None else [str(job.saves.directory.resolve()), job.saves.every],
    }


def follow(team: Team, stop: Callable[[], bool]) -> int:
    """Take part in the passes that the lead orders, until it lets this process go; the exit code."""
    try:
        while (found := team.next_order(stop)) is not None:
            if "join" in found:
                team.join(_device(team, found["join"]["device"]), found["join"]["timeout"])
            else:
                _take_part(team, found, stop)
    except KeyboardInterrupt:
        return 0
    except Exception as error:
        return _explain(team, error)
    finally:
        team.leave()
    team.close()
    return 0


def _explain(team: Team, error: BaseException) -> int:
    """What one rank has met, the lead tells; only if there is no lead any more does this one speak."""
    from sprunec.engines.team import lost

    gone = lost(error)
    words = gone or str(explained(error, "its part of the pass", None))
    if gone is None:
        log.debug("rank %d", team.rank, exc_info=error)
        team.complain(words)
    if not team.is_over():
        print(f"error: rank {team.rank}: {words}", file=sys.stderr, flush=True)
    return 1


def blame(error: BaseException, team: Team) -> str | None:
    """What the lead says when it fails in a pass of all ranks: what another has complained of, or that it is gone."""
    from sprunec.engines.team import lost

    gone = lost(error)
    if gone is None:
        return None
    with postponed():  # torchrun ends this one, too, once another has died: there is time to say why
        return team.fault() or gone


def _take_part(team: Team, found: Mapping[str, Any], stop: Callable[[], bool]) -> None:
    from sprunec.engines.checkpoints import Saves

    saves = found["saves"]
    with tempfile.TemporaryDirectory(prefix="sprunec-rank-") as scratch:
        job = Job(
            options=_options(found["pass"], found["options"]),
            inputs={role: Path(path) for role, path in found["inputs"].items()},
            files={role: tuple(map(Path, paths)) for role, paths in found["files"].items()},
            out=Path(scratch),
            device=_device(team, found["device"]),
            report=lambda event: None,
            saves=None if saves is None else Saves(Path(saves[0]), saves[1], stop, world=team),
            engine=found["engine"],
            world=team,
        )
        with suppress(KeyboardInterrupt):  # all have stopped; this one is there until the lead has saved
            PASSES.home(found["pass"]).run(job)


def _options(name: str, document: Mapping[str, Any]) -> Any:
    distillation = {key: Distillation(**value) for key, value in document.items() if key == "distillation"}
    return PASSES[name].options(**{**document, **distillation})


def _device(team: Team, device: str) -> str:
    from sprunec.engines.device import Place
    from sprunec.engines.team import here

    return str(Place.of(here(device, team.local_rank), "fp32").device)
