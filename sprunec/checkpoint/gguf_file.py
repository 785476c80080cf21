"""What a GGUF file says of its model, and where its tensors lie, from its header; needs neither torch nor NumPy.

The format is ggml's (its docs/gguf.md), versions 2 and 3. All that a header can claim is held against the file before
memory is taken for it: a hostile one takes no more than `LARGEST` bytes and `MOST_ITEMS` entries of lists.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from sprunec.checkpoint.safetensors_file import Shape, Stored, is_addressable
from sprunec.durable import naming
from sprunec.errors import InputError
from sprunec.file_digests import file_stamp

SUFFIX, MAGIC, VERSIONS = ".gguf", b"GGUF", (2, 3)
LARGEST, BUFFER = 64 * 2**20, 2**18  # bytes of a header; of it that are read at once
MOST_ITEMS, MOST_KEYS, MOST_TENSORS = 2 * 2**20, 2**16, 2**16
MOST_DIMS, LONGEST_NAME = 4, 1024
ALIGNMENT = 32  # where no key says another
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
BOOL, STRING, ARRAY = 7, 8, 9


class Packing(NamedTuple):
    """How numbers of a tensor are stored: so many together, in so many bytes."""

    name: str
    entries: int
    nbytes: int


PACKINGS = {0: Packing("F32", 1, 4), 1: Packing("F16", 1, 2), 30: Packing("BF16", 1, 2)}
PACKINGS |= {
    number: Packing(name, entries, nbytes)
    for entries, packed in {
        32: {2: ("Q4_0", 18), 3: ("Q4_1", 20), 6: ("Q5_0", 22), 7: ("Q5_1", 24), 8: ("Q8_0", 34), 20: ("IQ4_NL", 18)}
        | {39: ("MXFP4", 17)},
        256: {10: ("Q2_K", 84), 11: ("Q3_K", 110), 12: ("Q4_K", 144), 13: ("Q5_K", 176), 14: ("Q6_K", 210)}
        | {16: ("IQ2_XXS", 66), 17: ("IQ2_XS", 74), 18: ("IQ3_XXS", 98), 19: ("IQ1_S", 50), 21: ("IQ3_S", 110)}
        | {22: ("IQ2_S", 82), 23: ("IQ4_XS", 136), 29: ("IQ1_M", 56), 34: ("TQ1_0", 54), 35: ("TQ2_0", 66)},
    }.items()
    for number, (name, nbytes) in packed.items()
}


@dataclass(frozen=True)
class Packed(Stored):
    """A tensor whose numbers are made of what lies there: float32, a row at a time."""

    packing: Packing = PACKINGS[0]

    @property
    def row_bytes(self) -> int:
        """Count the bytes of what is along the first dim, one entry of it."""
        return math.prod(self.shape[1:]) // self.packing.entries * self.packing.nbytes

    @property
    def extent(self) -> int:
        return math.prod(self.shape) // self.packing.entries * self.packing.nbytes


@dataclass(frozen=True)
class GGUFFile:
    """A header: values by key, and tensors by name; shapes as torch has them, the last dim's entries side by side."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Stored]


def is_gguf(path: Path) -> bool:
    """Tell by its name, or where that has no ending by its first bytes, whether a file is meant to be GGUF."""
    try:
        if path.suffix or not path.is_file():
            return path.suffix == SUFFIX and path.is_file()
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:  # of a name that is too long, too; whoever reads it says so
        return False


def read_gguf(path: Path) -> GGUFFile:
    """Read a file's header.

    Raises:
        OSError: the disk does not give it.
        InputError: it is no whole GGUF file, or of a version or packing that is not known here.
    """
    return _read(path, file_stamp(path))


@lru_cache(maxsize=1)  # a plan asks for it as often as for a directory's files
def _read(path: Path, _: tuple[int, int]) -> GGUFFile:
    with naming(path), path.open("rb", buffering=BUFFER) as file:
        try:
            return _Reader(file, path, path.stat().st_size).header()
        except _Broken as error:
            raise unusable(path, str(error)) from None


def unusable(path: Path, why: str) -> InputError:
    message = f"cannot be read as a model: this is no GGUF file that is known here: {why}"
    return InputError.at(path, message, "copy or download it again", code="bad-checkpoint")


class _Broken(Exception):  # noqa: N818
    """What is wrong with a header."""


class _Reader:
    """Takes a header from its beginning to its end."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self.file, self.path, self.size = file, path, size
        self.place, self.items = 0, 0

    def header(self) -> GGUFFile:
        if self.take(len(MAGIC)) != MAGIC:
            raise _Broken("it does not begin with GGUF")
        version = self.number("I")
        if version not in VERSIONS:
            turned = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
            raise _Broken("it is big-endian" if turned else f"it is of version {version}")
        tensors, keys = self.count("tensors", MOST_TENSORS), self.count("keys", MOST_KEYS)
        metadata = dict[str, Any]()
        for _ in range(keys):
            key = self.name("key")
            if key in metadata:
                raise _Broken(f"it has the key {key!r} twice")
            metadata[key] = self.value(key, self.number("I"))
        found = dict[str, tuple[Packing, Shape, int]]()
        for _ in range(tensors):
            name = self.name("tensor")
            if name in found:
                raise _Broken(f"it has the tensor {name!r} twice")
            found[name] = self.tensor(name)
        return GGUFFile(metadata, self.placed(found, metadata.get("general.alignment", ALIGNMENT)))

    def take(self, count: int) -> bytes:
        self.place += count
        if self.place > min(self.size, LARGEST):
            raise _Broken(
                f"its header goes on behind its {self.size:,} bytes"
                if self.place > self.size
                else f"its header is longer than {LARGEST:,} bytes"
            )
        found = self.file.read(count)
        if len(found) < count:
            raise _Broken("it has become shorter while it was read")
        return found

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def count(self, what: str, most: int) -> int:
        found: int = self.number("Q")
        if found > most:
            raise _Broken(f"it says that it has {found:,} {what}")
        return found

    def text(self, longest: int = LARGEST) -> str:
        length: int = self.number("Q")
        if length > longest:
            raise _Broken(f"a text in it would be {length:,} bytes long")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise _Broken("a text in it is not UTF-8") from None

    def name(self, what: str) -> str:
        found = self.text(LONGEST_NAME)
        if not found.isprintable() or not found:
            raise _Broken(f"a {what} in it is called {found!r}")
        return found

    def value(self, key: str, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self.entries(key, self.number("I"))
        return self.numbers(key, kind, 1)[0]

    def entries(self, key: str, kind: int) -> list[Any]:
        count: int = self.number("Q")
        self.items += count
        if self.items > MOST_ITEMS:
            raise _Broken(f"the list {key!r} has {count:,} entries")
        return self.texts(count) if kind == STRING else self.numbers(key, kind, count)

    def texts(self, count: int) -> list[str]:
        """Do as `text` so many times, of which a vocabulary has some hundred thousand."""
        found, most = list[str](), min(self.size, LARGEST)
        for _ in range(count):
            length = int.from_bytes(self.file.read(8), "little")
            self.place += 8 + length
            if self.place > most:
                raise _Broken(f"a text in it would be {length:,} bytes long")
            try:
                found.append(self.file.read(length).decode("utf-8"))
            except UnicodeDecodeError:
                raise _Broken("a text in it is not UTF-8") from None
        if self.file.tell() != self.place:
            raise _Broken("it has become shorter while it was read")
        return found

    def numbers(self, key: str, kind: int, count: int) -> list[Any]:
        if kind not in NUMBERS:
            raise _Broken(f"{key!r} is of kind {kind}, which no value here is")
        code = "B" if kind == BOOL else NUMBERS[kind]
        found = struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(f"<{code}")))
        if kind == BOOL and not set(found) <= {0, 1}:
            raise _Broken(f"{key!r} is neither true nor false")
        return [bool(each) for each in found] if kind == BOOL else list(found)

    def tensor(self, name: str) -> tuple[Packing, Shape, int]:
        """Read how a tensor is stored, its shape, and where it begins behind the header."""
        dims: int = self.number("I")
        if dims > MOST_DIMS:
            raise _Broken(f"tensor {name!r} has {dims:,} dims")
        shape = tuple(self.number("Q") for _ in range(dims))[::-1]
        kind: int = self.number("I")
        packing, start = PACKINGS.get(kind), self.number("Q")
        if packing is None:
            raise _Broken(f"tensor {name!r} is of kind {kind}, which no weights here are")
        if not is_addressable(shape) or 0 in shape or (shape or (1,))[-1] % packing.entries:
            raise _Broken(f"tensor {name!r} of {list(shape)} {packing.name} is none that there can be")
        return packing, shape, start

    def placed(self, found: Mapping[str, tuple[Packing, Shape, int]], alignment: Any) -> dict[str, Stored]:
        """Say where in the file the tensors are, behind the header and what fills it up."""
        if type(alignment) is not int or not 8 <= alignment <= BUFFER or alignment & (alignment - 1):
            raise _Broken(f"its tensors would be aligned to {alignment!r}")
        base = -(-self.place // alignment) * alignment
        places, spans = dict[str, Stored](), list[tuple[int, int]]()
        for name, (packing, shape, start) in found.items():
            place = stored_at(self.path, packing, shape, base + start)
            if start % alignment or place.start + place.extent > self.size:
                raise _Broken(f"tensor {name!r} would lie behind its {self.size:,} bytes, or between two places")
            places[name] = place
            spans.append((place.start, place.start + place.extent))
        if any(later[0] < earlier[1] for earlier, later in pairwise(sorted(spans))):
            raise _Broken("its tensors overlap")
        return places


def stored_at(path: Path, packing: Packing, shape: Shape, start: int) -> Stored:
    """Say where a tensor is, and whether its numbers lie there as they are."""
    if packing.name == "F32":
        return Stored(path, "F32", shape, start)
    return Packed(path, "F32", shape, start, packing=packing)
