"""Whole files with odd contents: tensors, masks, texts and records that somebody's script could have written."""

from __future__ import annotations

import json
import math
import pickle
import random
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.helpers.live_sets import FileInfo, blocks_of, cpm_live

Named = list[tuple[str, Tensor]]
NUMBERS = [math.nan, math.inf, -math.inf, 1e-45, -1e-310, 3e38, -3e38, 7e4, 1e300, -0.0, 0.0]
MASK_NUMBERS = [0.5, -1.0, 2.0, math.nan, math.inf, -0.0, 1e-45, 0.999, 1.0, 0.0]
KINDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.complex64: "C64",
}
NAMES = ["", "a\0b", "\ud800", "x" * 3000, "\u2028", "module.", "ä", "../up", "__metadata__"]
LETTERS = "abcdefgh ijklmnop\nqrstuvwxyz.,"


# ---- tensors


def changed_tensors(named: Named, draw: random.Random, numbers: list[float] = NUMBERS) -> Named:
    """One to three tensors are gone, renamed, doubled, of another dtype or shape, or hold odd numbers."""
    named = list(named)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        if named:
            named = draw.choice([_numbered, _numbered, _typed, _shaped, _renamed])(named, draw, numbers)
    return named


def _numbered(named: Named, draw: random.Random, numbers: list[float]) -> Named:
    """An entry, a row, or all of a tensor, or of all tensors."""
    place, number, all_of_them = draw.randrange(len(named)), draw.choice(numbers), draw.random() < 0.1
    return [(n, _filled(t, number, draw) if all_of_them or i == place else t) for i, (n, t) in enumerate(named)]


def _filled(tensor: Tensor, number: float, draw: random.Random) -> Tensor:
    if not tensor.is_floating_point() or not tensor.numel() or tensor.element_size() == 1:
        return tensor
    tensor = tensor.clone()
    first = tensor[draw.randrange(len(tensor))] if tensor.dim() else tensor
    if draw.random() < 0.5 and first.dim():
        first = first.reshape(-1)[draw.randrange(first.numel())]
    (tensor if draw.random() < 0.3 else first).copy_(torch.tensor(number, dtype=torch.double).to(tensor.dtype))
    return tensor


def _typed(named: Named, draw: random.Random, _: list[float]) -> Named:
    place, kind, all_of_them = draw.randrange(len(named)), draw.choice(list(KINDS)), draw.random() < 0.2
    chosen = [(all_of_them or i == place) and not t.is_complex() for i, (_, t) in enumerate(named)]
    return [(n, t.to(kind) if chosen[i] else t) for i, (n, t) in enumerate(named)]


def _shaped(named: Named, draw: random.Random, _: list[float]) -> Named:
    """Transposed, flattened, with one axis more, a row less or more, emptied, a scalar, or another's."""
    place = draw.randrange(len(named))
    name, tensor = named[place]
    ways: list[Callable[[Tensor], Tensor]] = [
        lambda t: t.mT if t.dim() == 2 else t[None],
        lambda t: t.flatten(),
        lambda t: t.unsqueeze(-1),
        lambda t: t[1:] if t.dim() else t,
        lambda t: torch.cat([t, t[:1]]) if t.dim() else t,
        lambda t: t[..., :-1] if t.dim() else t,
        lambda t: t[:0] if t.dim() else t,
        lambda t: t.new_zeros(()),
        lambda t: draw.choice(named)[1],
    ]
    named[place] = (name, draw.choice(ways)(tensor).contiguous())
    return named


def _renamed(named: Named, draw: random.Random, _: list[float]) -> Named:
    """Gone, under another name, under two, or two under one."""
    place = draw.randrange(len(named))
    name, tensor = named[place]
    other = draw.choice([name + "s", draw.choice(NAMES) + name, draw.choice(NAMES), name.upper()])
    more: dict[int, Named] = {0: [], 1: [(other, tensor)], 2: [(name, tensor), (other, tensor)]}
    instead = more.get(draw.randrange(4), [(name, tensor), (name, draw.choice(named)[1])])
    return [*named[:place], *instead, *named[place + 1 :]]


def write_safetensors(named: Named, path: Path) -> None:
    """A header that says what it is given, names that are there twice and dtypes that few read among it."""
    entries, data = [], b""
    for name, tensor in named:
        raw = bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy()) if tensor.numel() else b""
        ends = [len(data), len(data) + len(raw)]
        entry = {"dtype": KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": ends}
        entries.append(f"{json.dumps(name)}: {json.dumps(entry)}")
        data += raw
    header = ("{" + ", ".join(entries) + "}").encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def write_pickled(named: Named, path: Path, draw: random.Random) -> None:
    """As torch saves it: in a zip, as it did of old, or as a module's parameters."""
    state: Any = dict(named)
    if draw.random() < 0.2:
        state = {n: torch.nn.Parameter(t) if t.is_floating_point() or t.is_complex() else t for n, t in named}
    torch.save(state, path, _use_new_zipfile_serialization=draw.random() < 0.8)


# ---- texts


def changed_lines(lines: list[bytes], draw: random.Random) -> bytes:
    """Marks, ends, characters and lengths of lines that editors, databases and crawlers leave behind."""
    end = draw.choice([b"\n", b"\n", b"\r\n", b"\r", b"\n\n", "\u2028".encode()])
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(lines) + 1)
        odd = draw.choice(
            [
                b"",
                b" \t ",
                b"\0",
                b"\xef\xbb\xbf",
                b"\xed\xa0\x80",
                b"\xff\xfe",
                "\U0001f600\u202e".encode(),
                b"x" * draw.choice([1, 200, 60_000]),
                b"\x1a\x0c",
                *lines[:3],
            ]
        )
        how = draw.randrange(4)
        if how == 0 or not lines:
            lines = [*lines[:place], odd, *lines[place:]]
        elif how == 1:
            place = draw.randrange(len(lines))
            at = draw.randrange(len(lines[place]) + 1)
            lines = [*lines[:place], lines[place][:at] + odd + lines[place][at:], *lines[place + 1 :]]
        else:
            lines = lines[: draw.choice([0, 1, len(lines) // 2])] if how == 2 else [odd, *lines]
    marked = (b"\xef\xbb\xbf" if draw.random() < 0.2 else b"") + end.join(lines)
    return marked + (end if draw.random() < 0.7 else b"")


def some_text(draw: random.Random, lines: int = 40) -> list[bytes]:
    return ["".join(draw.choices(LETTERS, k=30)).replace("\n", " ").encode() for _ in range(lines)]


def changed_objects(objects: list[dict[str, Any]], draw: random.Random) -> list[bytes]:
    """JSON lines of which some have other keys, values of other types, or text that few expect."""
    odd: list[Any] = ["", "\0", "\ud800", "x" * 60_000, "\u2028", None, 3, math.nan, ["a"], {"text": "a"}, True]
    objects = [dict(each) for each in objects]
    for _ in range(draw.randint(1, 4)):
        each = draw.choice(objects)
        key = draw.choice(sorted(each) or ["text"])
        how = draw.randrange(3)
        if how == 0:
            each.pop(key, None)
        elif how == 1:
            each[key + draw.choice(["s", "", "\ud800"])] = draw.choice(odd)
        else:
            each[draw.choice(["id", "", "TEXT"])] = draw.choice(odd)
    return [json.dumps(each, ensure_ascii=draw.random() < 0.6).encode("utf-8", "surrogatepass") for each in objects]


# ---- CPM-Live's sets


def changed_records(records: list[list[int]], draw: random.Random) -> list[np.ndarray[Any, Any]]:
    """Arrays in which some numbers, lengths or dtypes are no record's of this model."""
    arrays = [np.array(each, dtype=np.int64) for each in records]
    numbers = [-1, 0, 1, 96, 97, 98, 2**31, -(2**31) - 1, 2**62, -(2**63)]
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(arrays))
        array = arrays[place].copy()
        how = draw.randrange(5)
        if how < 2 and array.ndim == 1 and array.size and array.dtype == np.int64:
            array[draw.randrange(min(array.size, draw.choice([6, array.size])))] = draw.choice(numbers)
        elif how == 2:
            array = array[: draw.choice([0, 1, 4, -1])] if array.ndim else array
        elif how == 3 and array.dtype == np.int64:
            array = array.astype(draw.choice([np.int32, np.float64, np.float16, np.bool_, np.uint64, np.complex64]))
        else:
            array = draw.choice([array.reshape(1, -1), np.concatenate([array.ravel()] * 40), np.array(7)])
        arrays[place] = array
    return arrays


def write_set(folder: Path, arrays: Iterable[np.ndarray[Any, Any]], size: int, version: int) -> None:
    """One file of records as they are given; `live_sets` writes those that are well-formed."""
    folder.mkdir(parents=True)
    dumped = [pickle.dumps(array, protocol=4) for array in arrays]
    payloads = dumped if version == 1 else [struct.pack("@I", len(each) + 4) + each for each in dumped]
    blocks = blocks_of([each for each in payloads if len(each) + 2 < size], size)
    (folder / "data_0").write_bytes(b"".join(blocks))
    state = ("data_0", 0, len(blocks), sum(map(len, payloads)), len(payloads), False)
    if version == 1:
        with cpm_live():
            (folder / "meta.bin").write_bytes(pickle.dumps([FileInfo(*state)], protocol=4))
        return
    keys = ("file_name", "block_begin", "block_end", "nbytes", "nlines", "mask")
    (folder / "meta.bin").write_text(json.dumps(dict(zip(keys, state, strict=True)) | {"block_size": size}) + "\n")
