"""CPM-Live's data sets on disk, both versions: a directory with meta.bin and files cut into blocks of records.

Version 1 (CPM-Ant's) pickles the list of files and does not say how large a block is; version 2 lists them as JSON
lines. A record is a byte 0x1F and an array; a byte 0 ends a block.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from sprunec.checkpoint.safe_pickle import Refused, brief, load_pickle
from sprunec.errors import Diagnostic, InputError, series
from sprunec.file_kinds import TEXT, foreign
from sprunec.text_files import decode

META = "meta.bin"
RECORD, END = b"\x1f", b"\0"
DEFAULT_BLOCK = 16 << 20
MODULE, CLASS, LOADER = "cpm_live.dataset.distributed_dataset", "FileInfo", "_load_from_state"
ANEW = "copy the set again, or make it with sprunec make-data"


class FileInfo(NamedTuple):
    """One file of a set; `block_begin` to `block_end` are its blocks' numbers in the whole set."""

    file_name: str
    block_begin: int
    block_end: int
    nbytes: int
    nlines: int
    mask: int
    block_size: int

    @property
    def blocks(self) -> int:
        return self.block_end - self.block_begin


class DataSet(NamedTuple):
    """A set's files in use (masked ones are left out), in the order of their blocks."""

    directory: Path
    version: int
    files: tuple[FileInfo, ...]

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(self.directory / info.file_name for info in self.files)

    def check_files(self) -> None:
        """Raise InputError for a file that is missing or not as long as its blocks."""
        for info, path in zip(self.files, self.paths, strict=True):
            if not path.is_file():
                raise InputError.at(path, f"there is no such file, and {META} names it", "copy it, or mask it")
            size, wanted = path.stat().st_size, info.blocks * info.block_size
            if size != wanted:
                message = f"has {size:,} bytes, and {info.blocks} blocks of {info.block_size:,} take {wanted:,}"
                hint = "the file is not whole: copy it again"
                if self.version == 1 and info.blocks and size and size % info.blocks == 0:
                    hint = f"give data.block_size {size // info.blocks} if it was written so, else copy the file again"
                raise InputError.at(path, message, hint)


def read_set(directory: Path, block_size: int | None = None) -> DataSet:
    """Read a set's meta.bin.

    Args:
        block_size: of version 1, in bytes, 16 MiB if not given; version 2 knows its own.

    Raises:
        InputError: meta.bin is missing or broken, or names a file outside the directory.
    """
    meta = directory / META
    if not meta.is_file():
        what = "is no plain file" if meta.exists() else "there is no such file"
        raise InputError.at(meta, what, f"give the directory of a set, with a {META} in it", code="missing-file")
    try:
        content = meta.read_bytes()
    except OSError as error:
        raise InputError.of_disk(meta, error) from error
    version = 1 if content.startswith(b"\x80") else 2
    size = DEFAULT_BLOCK if block_size is None else block_size
    files = _pickled(meta, content, size) if version == 1 else _listed(meta, content)
    begin = 0
    for info in files:
        if info.block_begin != begin or info.blocks < 0 or info.block_size < 1:
            message = f"{info.file_name} has blocks {info.block_begin} to {info.block_end}, and should begin at {begin}"
            raise InputError.at(meta, message, "copy the set again")
        begin, name = info.block_end, info.file_name
        strange = not name or "\0" in name or os.path.isabs(name)
        if strange or directory.resolve() not in (directory / name).resolve().parents:  # links among them
            message = f"names the file {name!r}, which is not inside the directory"
            raise InputError.at(meta, message, "put the set's files beside meta.bin")
    return DataSet(directory, version, tuple(info for info in files if not info.mask))


def set_files(directory: Path, block_size: int | None = None) -> tuple[Path, ...]:
    """Give meta.bin and the files in use; only meta.bin where it cannot be read."""
    try:
        return directory / META, *read_set(directory, block_size).paths
    except InputError:
        return (directory / META,)


def _pickled(meta: Path, content: bytes, block_size: int) -> list[FileInfo]:
    """Read the list of version 1, where each file is a call of the method `LOADER` of CPM-Live's own class."""

    def loaded(version: Any, state: Any) -> FileInfo:
        if version != 1:
            raise Refused(f"a {CLASS} of version {brief(version)}")
        return _file_info((*state, block_size) if isinstance(state, tuple) else ())

    def attribute(owner: Any, name: Any) -> Any:
        if (owner, name) != (CLASS, LOADER):
            raise Refused(f"the attribute {brief(name)} of {brief(owner)}")
        return loaded

    names = {"builtins.getattr": attribute, "__builtin__.getattr": attribute, f"{MODULE}.{CLASS}": CLASS}
    try:
        files = load_pickle(io.BytesIO(content), names)
        if not isinstance(files, list) or not all(isinstance(info, FileInfo) for info in files):
            raise Refused(f"{type(files).__name__}, not a list of {CLASS}")
    except Refused as error:
        message = f"holds {error}, where a list of a set's files should be; nothing in it was executed"
        raise InputError.at(meta, message, ANEW) from error
    return files


def _listed(meta: Path, content: bytes) -> list[FileInfo]:
    """Read the lines of version 2."""
    if told := foreign(meta, "the meta.bin of a data set", TEXT, {"": ANEW}):
        raise told
    files = []
    for number, line in enumerate(decode(content, meta).split("\n"), start=1):
        if line.strip():
            try:
                entry = json.loads(line)
                files.append(_file_info(tuple(entry[field] for field in FileInfo._fields)))
            except (ValueError, KeyError, TypeError, RecursionError, Refused) as error:
                message = f"this line is no entry of a data set, which has {series(FileInfo._fields, 'and')}"
                raise InputError(Diagnostic("bad-data", message, ANEW, file=str(meta), line=number)) from error
    return files


def _file_info(values: tuple[Any, ...]) -> FileInfo:
    if len(values) != len(FileInfo._fields) or type(values[-1]) is not int:
        raise Refused("an entry of another shape")
    if not isinstance(values[0], str) or not all(isinstance(value, int) for value in values[1:]):
        raise Refused("an entry with values of other types")
    return FileInfo(*values)
