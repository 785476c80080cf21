"""Options that several commands have."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from sprunec.families.own_code import FLAG, trusted
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
