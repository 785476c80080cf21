"""Errors that nobody foresaw: one line for the user, the traceback in a file for whoever mends it."""

from __future__ import annotations

import logging
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path

from sprunec.durable import write_atomically
from sprunec.errors import PassError, SprunecError
from sprunec.interrupts import was_interrupted

FILE = "error.txt"
log = logging.getLogger("sprunec")


class UnexpectedError(PassError):
    """A mistake of this tool or of a library, while a pass was `doing` something; its cause is the exception itself."""

    def __init__(self, doing: str, error: BaseException) -> None:
        super().__init__(f"{doing}: {own_words(error)}")
        self.__cause__ = error
        self.file: Path | None = None

    def __str__(self) -> str:
        kept = f"; the traceback is in {self.file}" if self.file is not None else ""
        return super().__str__() + kept


def own_words(error: BaseException) -> str:
    """Return the kind of an exception and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def is_foreseen(error: BaseException) -> bool:
    """Say whether an error is this tool's own, or the system's: libraries' OSErrors without a number say nothing."""
    return isinstance(error, SprunecError) or (isinstance(error, OSError) and error.errno is not None)


def explained(error: BaseException, doing: str, folder: Path | None) -> BaseException:
    """Choose the error to raise for `error`: itself where it was foreseen, else one that says where its traceback is.

    What an interrupt has led to is one.

    Args:
        folder: where `error.txt` goes; None: to a new file among the system's temporary ones.
    """
    if isinstance(error, Exception) and was_interrupted(error):
        return KeyboardInterrupt()
    if not isinstance(error, Exception) or (is_foreseen(error) and not isinstance(error, UnexpectedError)):
        return error
    told = error if isinstance(error, UnexpectedError) else UnexpectedError(doing, error)
    if told.file is None:
        text = "".join(traceback.format_exception(told.__cause__ or told))
        log.debug("%s", text)
        for place in (None,) if folder is None else (folder, None):  # elsewhere where that takes nothing
            with suppress(OSError):
                file = (place or Path(tempfile.mkdtemp(prefix="sprunec-"))) / FILE
                write_atomically(file, text)
                told.file = file
                break
    return told
