"""The command that shows runs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sprunec.cli_options import Debug
from sprunec.durable import write_atomically
from sprunec.show import output
from sprunec.show.console import say
from sprunec.show.report.markdown import markdown_text
from sprunec.show.report.page import write_page
from sprunec.show.report.runs import open_runs

PAGE, MARKDOWN = "report.html", ".md"


def report(
    outs: Annotated[list[Path], typer.Argument(metavar="OUT", help="Folders of runs, e.g. runs/NAME.")],
    file: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write there; Markdown, if its name ends in .md.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As Markdown for a pull request; without -o on stdout.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Show one run, or several side by side, on one page that needs nothing else: in OUT, or with several here.

    Example: sprunec report runs/a runs/b -o compared.html
    """
    with output.reporting(False, f"reading {', '.join(map(str, outs))}"):
        runs = open_runs(outs)
        if markdown and file is None:
            typer.echo(markdown_text(runs), nl=False)
            return
        path = file or (outs[0] / PAGE if len(outs) == 1 else Path(PAGE))
        if markdown or path.suffix == MARKDOWN:
            write_atomically(path, markdown_text(runs))
        else:
            write_page(path, runs)
    say(f"report: {path}", Console())
