"""What a run leaves for people, however it ends: its page, and its report for a pull request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sprunec.interrupts import Interrupts
from sprunec.show.console import Progress
from sprunec.show.output import print_failure
from sprunec.show.report.markdown import write_markdown
from sprunec.show.report.page import write_html


def write_reports(folder: Path) -> None:
    """Write OUT/report.html and OUT/report.md."""
    write_html(folder)
    write_markdown(folder)


@contextmanager
def page_of(folder: Path, progress: Progress, stop: Interrupts, as_json: bool) -> Iterator[None]:
    """Leave a page of the run in OUT, however it ends; say how to go on where it is interrupted."""
    from sprunec.execution.report import mark_interrupted

    told = f"interrupted; what is done is kept: run the same command again to continue in {folder}"

    def abandon() -> None:
        mark_interrupted(folder)
        progress.message(told)
        if as_json:
            print_failure(KeyboardInterrupt(), folder)

    stop.abandon = abandon
    try:
        yield
    except BaseException as error:
        stop.leave()  # what is left to do is short
        if isinstance(error, KeyboardInterrupt):
            progress.message(told)
        with suppress(Exception):  # what stopped the run is the error to tell of
            write_reports(folder)
        raise
    finally:
        progress.close()
    write_reports(folder)
