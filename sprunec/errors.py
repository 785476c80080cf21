"""What can go wrong, as a tree; the command line turns each leaf into an exit code.

SprunecError
├── InputError          3   a plan or an input file that cannot be used; carries diagnostics
├── TraceError          1   a module that cannot be traced or cut, named with its source line
├── PassError           1   a pass that could not do its work
│   ├── FormatError     1   a format that cannot hold or open the model; others are emitted all the same
│   └── UnexpectedError 1   something nobody foresaw, see `unexpected`
└── ComparisonError     1   the masked and the rewritten model disagree; nothing is emitted
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Sequence, Sized
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, TypeGuard

LONGEST_MESSAGE = 1000


def show(value: Any, longest: int = 60) -> str:
    """Write a value as it stands in JSON, cut short."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= longest else text[: longest - 3] + "..."


def series(words: Sequence[str], conjunction: str) -> str:
    """Join words as in `a, b and c`."""
    return f" {conjunction} ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def and_more(names: Sized, words: str = "and {} more") -> str:
    """Count, in brackets, those behind the first, which has been named."""
    return f" ({words.format(len(names) - 1)})" if len(names) > 1 else ""


@dataclass(frozen=True)
class Diagnostic:
    """One finding, in a file or about an option; `line` and `column` count from 1, 0 is the whole file.

    Attributes:
        file: empty where it is in none.
        pointer: of the option: a JSON pointer into the plan, or a flag of the command line; empty where it is of none.
    """

    code: str
    message: str
    hint: str = ""
    severity: str = "error"
    file: str = ""
    pointer: str = ""
    line: int = 0
    column: int = 0

    @property
    def place(self) -> str:
        """file:line:column, as far as they are known."""
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part)

    def __str__(self) -> str:
        words = ": ".join(part for part in (self.place, self.pointer, self.severity, self.message) if part)
        return f"{words}; {self.hint}" if self.hint else words

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class SprunecError(Exception):
    """Base of every error that a user can cause or must read."""

    exit_code = 1


class InputError(SprunecError):
    """A plan or an input file cannot be used; `diagnostics` are all findings, in file order, at least one an error."""

    exit_code = 3

    def __init__(self, *diagnostics: Diagnostic) -> None:
        self.diagnostics = diagnostics
        super().__init__("\n".join(str(d) for d in diagnostics))

    @classmethod
    def at(cls, file: object, message: str, hint: str = "", code: str = "bad-input") -> InputError:
        """Make an error about a whole file; cut a message short that repeats what a file holds at any length."""
        if len(message) > LONGEST_MESSAGE:
            message = message[: LONGEST_MESSAGE - 3] + "..."
        return cls(Diagnostic(code=code, message=message, hint=hint, file=str(file)))

    @classmethod
    def in_option(cls, pointer: str, message: str, hint: str = "", code: str = "bad-input") -> InputError:
        """Make an error about an option: by its JSON pointer in the plan, or as it is written on the command line."""
        return cls(Diagnostic(code=code, message=message, hint=hint, pointer=pointer))

    @classmethod
    def of_disk(
        cls, file: object, error: OSError, what: str = "the file cannot be read", code: str = "unreadable"
    ) -> InputError:
        """Make an error about a file that the disk does not give, or take: the system's words, and what to do."""
        message, remedy = _told(error, file)
        return cls.at(file, f"{what}: {message}", remedy, code)


def is_disk(error: BaseException) -> TypeGuard[OSError]:
    """Tell whether the disk is what failed, and not a reader on what the disk gave."""
    return isinstance(error, OSError) and error.errno in REMEDIES


def disk_words(error: OSError, place: object = "") -> str:
    """Say the same as `remedied`, with the file that it went wrong with, or else `place`, in front."""
    file = error.filename2 or error.filename or place  # of a file and its new name or its copy the second
    return f"{file}: {remedied(error, place)}" if file else remedied(error)


def remedied(error: OSError, place: object = "") -> str:
    """Say what went wrong with a file, how much room it needed and there is, and what to do about it."""
    return "; ".join(part for part in _told(error, place) if part)


def _told(error: OSError, place: object) -> tuple[str, str]:
    facts, file = [*getattr(error, "__notes__", ())], str(error.filename2 or error.filename or place)
    if file and error.errno in (errno.ENOSPC, errno.EDQUOT):
        there = os.path.abspath(file)
        while not os.path.exists(there):
            there = os.path.dirname(there)
        with suppress(OSError):
            facts.append(f"{shutil.disk_usage(there).free:,} bytes are free there")
    words = (error.strerror or str(error)) + (f" ({', '.join(facts)})" if facts else "")
    return words, REMEDIES.get(error.errno or 0, "")


_GONE = (errno.ENOENT, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ETIMEDOUT)
REMEDIES = {
    errno.ENOSPC: "make room, then run again",
    errno.EDQUOT: "you are at your quota: make room or have it raised, then run again",
    errno.EFBIG: "this disk or `ulimit -f` takes no file as large; give --out on another disk",
    errno.EROFS: "make it writable or give another place, then run again",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change its permissions or give another place, then run again"),
    errno.EIO: "the disk or its connection fails; run again when it is well",
    errno.ENODATA: "copy it again, then run again",
    **dict.fromkeys(_GONE, "put it back, or mount its disk again, then run again"),
    errno.ENOTDIR: "a folder on the way to it is a file; give another place",
    errno.EISDIR: "there is a folder in its place; remove it, or give another place",
    errno.EMFILE: "raise `ulimit -n`, then run again",
    errno.ENFILE: "close other programs, then run again",
    errno.ENAMETOOLONG: "give a place with a shorter name",
    errno.ELOOP: "a link leads back to itself; remove it",
}


class TraceError(SprunecError):
    """A module cannot be traced, or what was traced cannot be cut."""


class PassError(SprunecError):
    """A pass could not do its work."""


class FormatError(PassError):
    """An export format cannot hold the model, or cannot be opened again."""


class ComparisonError(SprunecError):
    """Two models that should compute the same disagree by more than the tolerance, as the comparison's metrics say."""

    def __init__(self, message: str, metrics: dict[str, Any]) -> None:
        super().__init__(message)
        self.metrics = metrics
