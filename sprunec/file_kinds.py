"""What a file really is, by its first bytes, in the words of whoever named it; needs no torch.

file_kind(path)      a key of `KINDS`
foreign(path, ...)   the error for a file that is not what it was named as, before or after a reader has failed on it
"""

from __future__ import annotations

import codecs
import json
import os
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sprunec.durable import naming
from sprunec.errors import InputError

HEAD = 1024
LARGEST_HEADER = 100 * 1024 * 1024
LARGEST_JSON = 64 * 1024 * 1024
_AGAIN, _UNPACK = "download it again, with a link to the file itself", "unpack it, and name what was in it"
_ANEW = "load it in torch, and torch.save its state dict again"


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        words: what it is, with an article.
        remedy: what to do about it wherever it is named, if that can be said.
        head: how its first bytes look; a text may look so too, unless the kind is one of `_PRINTED`.
    """

    words: str
    remedy: str = ""
    head: bytes = b""


# The first whose head fits is it: those that need more come before those that need less.
KINDS: Mapping[str, Kind] = {
    "safetensors": Kind("a safetensors file"),
    "torch": Kind("a PyTorch checkpoint (.pt)"),
    "old torch": Kind(
        "a PyTorch checkpoint as torch before 1.6 wrote it", _ANEW, rb"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
    ),
    "exported": Kind("a program that torch.export wrote (.pt2)"),
    "torchscript": Kind("a TorchScript program", "torch.save the module's state_dict()"),
    "gguf": Kind("a GGUF file", head=rb"GGUF"),
    "ggml": Kind("a GGML file", head=rb"lmgg|fmgg|tjgg|ggml|ggjt"),
    "lfs": Kind(
        "a Git LFS pointer: the file itself was not fetched", "fetch it with git lfs pull", rb"version https://git-lfs"
    ),
    "gzip": Kind("a gzip archive", _UNPACK, rb"\x1f\x8b"),
    "xz": Kind("an xz archive", _UNPACK, rb"\xfd7zXZ\x00"),
    "zstd": Kind("a Zstandard archive", _UNPACK, rb"\x28\xb5\x2f\xfd"),
    "lz4": Kind("an LZ4 archive", _UNPACK, rb"\x04\x22\x4d\x18"),
    "7z": Kind("a 7z archive", _UNPACK, rb"7z\xbc\xaf\x27\x1c"),
    "rar": Kind("a RAR archive", _UNPACK, rb"Rar!\x1a\x07"),
    "zip": Kind("a zip archive", _UNPACK),
    "office": Kind("an Office document (.docx, .xlsx)"),
    "hdf5": Kind("an HDF5 file, as Keras and TensorFlow write", head=rb"\x89HDF\r\n\x1a\n"),
    "tensorflow": Kind("a TensorFlow checkpoint"),
    "npy": Kind("a NumPy array (.npy)", head=rb"\x93NUMPY"),
    "npz": Kind("NumPy arrays (.npz)"),
    "parquet": Kind("a Parquet table", head=rb"PAR1"),
    "sqlite": Kind("an SQLite database", head=rb"SQLite format 3\x00"),
    "pdf": Kind("a PDF document", head=rb"%PDF-"),
    "program": Kind("a program", head=rb"\x7fELF"),
    "megatron": Kind("an index of Megatron's data sets (.idx)", head=rb"MMIDIDX\x00\x00"),
    "utf-32": Kind("UTF-32 text", "save it as UTF-8", rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff"),
    "utf-16": Kind("UTF-16 text", "save it as UTF-8", rb"\xff\xfe|\xfe\xff"),
    "image": Kind("an image", head=rb"\x89PNG\r\n|\xff\xd8\xff|GIF8|II\*\x00|MM\x00\*|RIFF....WEBP"),
    "arrow": Kind("an Arrow table", head=rb"ARROW1|FEA1|\xff{4}..[\x00-\x0f]\x00"),
    "bzip2": Kind("a bzip2 archive", _UNPACK, rb"BZh[1-9]1AY&SY"),
    "pickle": Kind("a Python pickle", head=rb"\x80[\x02-\x05]"),
    "tar": Kind("a tar archive", _UNPACK, rb".{257}ustar"),
    "sentencepiece": Kind("a SentencePiece model", head=rb"\n.{0,50}<unk>\x15"),
    "html": Kind("a web page (HTML)", _AGAIN, rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)[\s>]"),
    "xml": Kind("an XML document", _AGAIN, rb"(\xef\xbb\xbf)?\s*<\?xml"),
    "empty": Kind("empty", "copy or save it again"),
    "zeros": Kind("zero bytes from its beginning on", "copy or download it again", rb"\x00*\Z"),
    "tokenizer": Kind("a tokenizer.json of Hugging Face"),
    "plan": Kind("a plan"),
    "config": Kind("a model config"),
    "index": Kind("an index of shards"),
    "json": Kind("a JSON file"),
    "text": Kind("plain text"),
    "folder": Kind("a folder"),
    "unknown": Kind("binary data of no kind that is known here"),
}
JSON = frozenset({"plan", "config", "json"})
TEXT = frozenset({"text", "tokenizer", "index", *JSON})
SAVED = frozenset({"torch", "old torch", "pickle"})  # what torch.load opens
MARKUP = frozenset({"html", "xml"})  # text too, but hardly what anybody means

_PRINTED = ("lfs", "pdf", "bzip2", "tar", "sentencepiece", *MARKUP)  # else: a text may begin with GIF8
_HEADS = {name: re.compile(kind.head, re.DOTALL) for name, kind in KINDS.items() if kind.head}
_TABLE_END = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # of the index beside a TensorFlow checkpoint
# keys of a JSON object that tell it
_KEYS = {"weight_map": "index", "added_tokens": "tokenizer", "passes": "plan"}
_KEYS |= dict.fromkeys(("model_type", "dim_model", "hidden_size"), "config")


def foreign(
    path: Path, wanted: str, fine: Collection[str], hints: Mapping[str, str], *, whole: bool = True
) -> InputError | None:
    """Make the error for a file that cannot be read or is of a kind that its place cannot be; None where it may be it.

    Args:
        wanted: what the place is for, with an article.
        fine: the kinds that it may be.
        hints: what to do, by kind; under "" for all those that have no remedy of their own.
        whole: as in `file_kind`.
    """
    try:
        kind = file_kind(path, whole=whole)
    except FileNotFoundError:
        return None  # the reader says best what should be there
    except OSError as error:
        return InputError.of_disk(path, error)
    if kind in fine:
        return None
    hint = hints.get(kind) or KINDS[kind].remedy or hints.get("", "")
    code = "not-utf8" if kind.startswith("utf") else "foreign-file"
    return InputError.at(path, f"this is {KINDS[kind].words}, not {wanted}", hint, code=code)


def file_kind(path: Path, *, whole: bool = True) -> str:
    """Tell what a file is, a key of `KINDS`; raises OSError.

    Args:
        whole: whether JSON is read to its end; else "" is all that is said of text, and of what is not known.
    """
    if os.path.isdir(path):
        return "folder"
    with naming(path), path.open("rb") as stream:
        head = stream.read(HEAD)
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - len(_TABLE_END)))
        kind = _kind(path, head, stream.read())
    if kind or not whole:
        return kind
    if not head.removeprefix(codecs.BOM_UTF8).lstrip().startswith((b"{", b"[")):
        return "text" if _is_text(head) else "unknown"
    with naming(path):
        content = path.read_bytes() if path.stat().st_size <= LARGEST_JSON else b"[]"
    try:
        value: Any = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return "text"  # it does not go on like that
    return next((name for key, name in _KEYS.items() if isinstance(value, dict) and key in value), "json")


def _kind(path: Path, head: bytes, tail: bytes) -> str:
    """Tell the kind where first or last bytes tell it for certain."""
    if not head:
        return "empty"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_kind(path, head)
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= LARGEST_HEADER:
        return "safetensors"
    for name, pattern in _HEADS.items():
        if pattern.match(head) and (name in _PRINTED or not _is_text(head)):
            return name
    # Latin letters of UTF-16 without a mark: every second byte is 0
    nulls = max(head[0::2].count(0), head[1::2].count(0))
    latin = head.count(0) == nulls and nulls > len(head) // 4
    return "tensorflow" if tail == _TABLE_END else "utf-16" if latin else ""


def _zip_kind(path: Path, head: bytes) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # damaged: its end, with the list of names, is missing
        return "torch" if b"data.pkl" in head else "zip"
    inner = {name.partition("/")[2] for name in names}
    if "archive_format" in inner or "models/model.json" in inner:
        return "exported"
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return "torchscript"
    if "data.pkl" in inner:
        return "torch"
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    return "office" if "[Content_Types].xml" in names else "zip"


def _is_text(head: bytes) -> bool:
    """Tell whether it is UTF-8, the last character perhaps cut off, without bytes that no text has."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < HEAD)
    except UnicodeDecodeError:
        return False
    return b"\x00" not in head
