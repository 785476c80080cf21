"""Options that several commands have, and what those that look at a run say together."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from sprunec.compiler.speeds import given_speeds
from sprunec.families.own_code import FLAG, trusted
from sprunec.show.output import DryRun
from sprunec.unexpected import log

Quiet = Annotated[bool, typer.Option(help="No progress.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def _trust(context: typer.Context, wanted: bool) -> bool:
    """Trust what a model's directory brings until the command ends."""
    context.with_resource(trusted(wanted))
    return wanted


_RUNS_CODE = "Run the Python files that a model's directory brings for its classes."
TrustCode = Annotated[bool, typer.Option(FLAG, help=_RUNS_CODE, callback=_trust)]


def _debug(wanted: bool) -> None:
    """Let `unexpected` say on stderr what it else writes to a file only."""
    log.handlers = [logging.StreamHandler()] if wanted else []
    log.setLevel(logging.DEBUG if wanted else logging.WARNING)


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an unexpected error.", callback=_debug)]


def dry_run_of(
    dry_run: bool, devices: int, measure: bool, throughput: str | None, gigabytes: float | None, form: str | None
) -> DryRun:
    """Say how to look at a run; refuse what is about that where the run is to be done."""
    given = {"--measure": measure, "--throughput": throughput, "--memory": gigabytes, "--graph": form}
    for option in (option for option, value in given.items() if value and not dry_run):
        raise typer.BadParameter(f"{option} is about what a run would take; give --dry-run with it")
    if measure and throughput is not None:
        raise typer.BadParameter("--measure and --throughput are two ways to say a time; give one of them")
    speeds = None if throughput is None else given_speeds(throughput)
    if throughput is not None and speeds is None:
        raise typer.BadParameter(f"--throughput {throughput} is no number of operations a second; write it as 40T")
    return DryRun(devices, measure, speeds, None if gigabytes is None else gigabytes * 1e9, form)
