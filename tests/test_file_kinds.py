"""A file that is not what it was named as is told for what it is, wherever it is named, in no parser's words."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sprunec.bmcook.masks import two_four_files
from sprunec.checkpoint.layouts import weight_files
from sprunec.checkpoint.reader import open_tensors
from sprunec.checkpoint.writer import save_tensors
from sprunec.cli import app
from sprunec.compiler.inspect import inspect_model
from sprunec.data.text import read_text
from sprunec.errors import InputError
from sprunec.families.vocabulary import read_vocabulary
from sprunec.file_kinds import KINDS, file_kind
from sprunec.mask_files.reading import read_mask_file
from sprunec.plan.plan import check_plan
from tests.helpers.small_plans import EMIT, MODEL, TRAIN, plan, write


def zipped(*names: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"content")
    return stream.getvalue()


def torch_saved(**options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save({"a": torch.ones(4)}, stream, **options)
    return stream.getvalue()


def in_tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"), io.BytesIO())
    return stream.getvalue()


def arrays(save: Callable[..., None]) -> bytes:
    stream = io.BytesIO()
    save(stream, np.arange(4))
    return stream.getvalue()


def safetensors() -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


def torchscript() -> bytes:
    return zipped("m/data.pkl", "m/code/__torch__.py", "m/constants.pkl", "m/version")


REAL: dict[str, bytes] = {
    "safetensors": safetensors(),
    "torch": torch_saved(),
    "old torch": torch_saved(_use_new_zipfile_serialization=False),
    "torchscript": torchscript(),
    "exported": zipped("m/archive_format", "m/models/model.json"),
    "pickle": pickle.dumps({"a": 1}),
    "gguf": b"GGUF" + (3).to_bytes(4, "little") + bytes(16),
    "ggml": b"tjgg" + (1).to_bytes(4, "little") + bytes(16),
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
    "html": b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>",
    "xml": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "gzip": gzip.compress(b'{"text": "a"}\n'),
    "xz": lzma.compress(b"text"),
    "bzip2": bz2.compress(b"text"),
    "zstd": b"\x28\xb5\x2f\xfd\x04\x58\x21\x00\x00",
    "lz4": b"\x04\x22\x4d\x18\x64\x40\xa7\x00",
    "tar": in_tar(),
    "7z": b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(24),
    "rar": b"Rar!\x1a\x07\x01\x00",
    "zip": zipped("a.txt"),
    "office": zipped("[Content_Types].xml", "word/document.xml"),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(16),
    "tensorflow": b"\x01\x02\x83" + bytes(40) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb",
    "npy": arrays(np.save),
    "npz": arrays(np.savez),
    "parquet": b"PAR1\x15\x04\x15\x00" + bytes(16) + b"PAR1",
    "arrow": b"ARROW1\x00\x00" + b"\xff\xff\xff\xff\x10\x00\x00\x00",
    "sqlite": b"SQLite format 3\x00" + bytes(16),
    "sentencepiece": b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02",
    "pdf": b"%PDF-1.7\n1 0 obj\n",
    "image": b"\x89PNG\r\n\x1a\n" + bytes(8),
    "program": b"\x7fELF\x02\x01\x01" + bytes(9),
    "megatron": b"MMIDIDX\x00\x00" + (1).to_bytes(8, "little"),
    "utf-16": "some words\n".encode("utf-16"),
    "utf-32": "some words\n".encode("utf-32"),
    "zeros": bytes(5000),
    "tokenizer": b'{"version": "1.0", "added_tokens": [], "model": {"type": "BPE"}}',
    "index": b'{"metadata": {}, "weight_map": {"a": "x.safetensors"}}',
    "plan": json.dumps(plan(TRAIN)).encode(),
    "config": json.dumps(MODEL).encode(),
    "json": b"[1, 2]",
    "text": "some words of text, and ä\n".encode() * 100,
    "unknown": b"\x93\xfa\x02\xff\x81" * 20,
    "empty": b"",
}
TEXTS = {"tokenizer", "index", "plan", "config", "json", "text", "empty"}
MARKED = {"html", "xml"}
LATER = {"unknown"}  # perhaps text that is no UTF-8: told by place when it is read


def test_the_table_has_every_kind() -> None:
    assert {*REAL} | {"folder"} == {*KINDS}


@pytest.mark.parametrize("kind", REAL)
def test_a_kind_is_told_by_content_whatever_the_name(kind: str, tmp_path: Path) -> None:
    for name in ("file", "model.safetensors", "model.pt", "notes.json"):
        (tmp_path / name).write_bytes(REAL[kind])
        assert file_kind(tmp_path / name) == kind
    assert file_kind(tmp_path) == "folder"


@pytest.mark.parametrize(
    "start", ["GIF89 is a format", "GGUF files", "BZh", "PAR1 is Parquet", "{not json", "Rar! I said"]
)
def test_text_that_begins_as_a_format_does_is_text(start: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text(start + ", and more words ä", encoding="utf-8")
    assert file_kind(tmp_path / "a") == "text"


def test_a_character_on_the_edge_of_what_is_read_is_text(tmp_path: Path) -> None:
    for shift in range(4):
        (tmp_path / "a").write_text("x" * shift + "好" * 1000, encoding="utf-8")
        assert file_kind(tmp_path / "a") == "text"


def in_plan(**changes: Any) -> Callable[[Path], Any]:
    """What `validate` says of a plan that names the file."""

    def read(path: Path) -> Any:
        content = plan(TRAIN, EMIT, **{key: put(value, path) for key, value in changes.items()})
        found = [each for each in check_plan(write(path.parent, content, "the.plan"))[1] if each.severity == "error"]
        if found:
            raise InputError(*found)

    return read


def put(value: Any, path: Path) -> Any:
    if isinstance(value, dict):
        return {key: put(inner, path) for key, inner in value.items()}
    return [put(inner, path) for inner in value] if isinstance(value, list) else path.name if value == "FILE" else value


def masked(path: Path) -> Any:
    content = plan(TRAIN, {"pass": "load-mask", "path": path.name}, EMIT)
    found = [each for each in check_plan(write(path.parent, content, "the.plan"))[1] if each.severity == "error"]
    if found:
        raise InputError(*found)


TEXT_DATA = {"max_length": 34, "batch_size": 4}
# place: the file's name there, what reads it, and the kinds that may be right
PLACES: dict[str, tuple[str, Callable[[Path], Any], set[str]]] = {
    "checkpoint": ("m.pt", open_tensors, {"torch"}),
    "checkpoint of safetensors": ("m.safetensors", open_tensors, {"safetensors", "unknown"}),
    "checkpoint in a plan": ("m.bin", in_plan(model={"config": MODEL, "checkpoint": "FILE"}), {"torch"}),
    "teacher in a plan": ("m.pt", in_plan(training={"distillation": {"logits": 1, "teacher": "FILE"}}), {"torch"}),
    "config in a plan": ("c.json", in_plan(model={"config": "FILE"}), {"config", "json", "text", "empty"}),
    "mask": ("m.pt", read_mask_file, {"torch", "old torch", "pickle"}),
    "mask of 2:4": (
        "m.pt",
        lambda path: two_four_files.read_mask_file(path, "m4n2_1d", {}, {}),
        {"torch", "old torch", "pickle"},
    ),
    "mask as JSON": ("m.json", read_mask_file, TEXTS - {"empty"}),
    "mask in a plan": ("m.pt", masked, {"torch", "old torch", "pickle"}),
    "plan": ("p.json", lambda path: said(check_plan(path)[1]), {"plan", "config", "json", "text", "empty"}),
    "text": ("a.txt", lambda path: read_text("text", [path]), TEXTS | MARKED),
    "text in a plan": ("a.txt", in_plan(data={"source": "text", "path": "FILE"} | TEXT_DATA), TEXTS | MARKED | LATER),
    "JSON lines": ("a.jsonl", lambda path: read_text("jsonl", [path]), TEXTS | {"gzip"}),
    "JSON lines in a plan": (
        "a.jsonl",
        in_plan(data={"source": "jsonl", "path": "FILE"} | TEXT_DATA),
        TEXTS | LATER | {"gzip"},
    ),
    "held-out pairs in a plan": (
        "h.jsonl",
        in_plan(data={"source": "pairs", "path": "a.jsonl", "held_out": "FILE"} | TEXT_DATA),
        TEXTS | LATER | {"gzip"},
    ),
    "vocabulary": ("v.txt", read_vocabulary, {"text"}),
    "vocabulary in a plan": (
        "v.txt",
        in_plan(data={"source": "python-docs", "tokenizer": "FILE"} | TEXT_DATA),
        TEXTS | LATER,
    ),
    "index of shards": ("m.safetensors.index.json", weight_files, TEXTS - {"empty"}),
    "inspect": ("m", inspect_model, {"safetensors", "torch", "unknown", "plan", "config", "json", "gguf"}),
}


def said(found: Any) -> None:
    errors = [each for each in found if each.severity == "error"]
    if errors:
        raise InputError(*errors)


@pytest.mark.parametrize("kind", REAL)
@pytest.mark.parametrize("place", PLACES)
def test_a_file_of_another_kind_is_told_for_what_it_is(place: str, kind: str, tmp_path: Path) -> None:
    name, read, fine = PLACES[place]
    if kind in fine:
        return
    path = tmp_path / name
    path.write_bytes(REAL[kind])
    with pytest.raises(InputError) as caught:
        read(path)
    words = str(caught.value)
    if kind == "unknown" and "not UTF-8" in words:  # perhaps text in another coding: where it is none helps more
        assert f"{path}:1:1: error: byte 0x93" in words
    else:
        assert f"this is {KINDS[kind].words}, not " in words
    assert str(path) in words
    for parser in ("Expecting", "unpickl", "weights_only", "mmap", "codec", "Traceback", "Error", "magic"):
        assert parser not in words.replace("AccessDenied", "")
    assert all(each.hint for each in caught.value.diagnostics)


def test_a_wrong_ending_is_told_with_the_right_one(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(REAL["torch"])
    (tmp_path / "model.bin").write_bytes(REAL["safetensors"])
    (tmp_path / "x.pt").write_bytes(REAL["gguf"])
    for name, right in (("model.safetensors", "model.pt"), ("model.bin", "model.safetensors"), ("x.pt", "x.gguf")):
        with pytest.raises(InputError) as caught:
            open_tensors(tmp_path / name)
        assert caught.value.diagnostics[0].hint == f"rename it to {right}"


def test_remedies_are_those_of_the_place(tmp_path: Path) -> None:
    def hint(name: str, content: bytes, read: Callable[[Path], Any]) -> str:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as caught:
            read(tmp_path / name)
        return caught.value.diagnostics[0].hint

    assert "read_parquet" in hint("a.jsonl", REAL["parquet"], lambda path: read_text("jsonl", [path]))
    assert "read_parquet" not in hint("m.pt", REAL["parquet"], open_tensors)
    assert "git lfs pull" in hint("m.pt", REAL["lfs"], open_tensors)
    assert "sprunec inspect" in hint("m.json", REAL["torch"], lambda path: said(check_plan(path)[1]))
    assert "one piece a line" in hint("v.txt", REAL["tokenizer"], read_vocabulary)
    assert "one piece a line" in hint("v.txt", REAL["sentencepiece"], read_vocabulary)


@pytest.mark.parametrize("command", [["run"], ["validate"], ["inspect"]])
def test_commands_refuse_a_stranger_with_exit_code_3(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(REAL["html"])
    result = CliRunner().invoke(app, [*command, str(tmp_path / "page")])
    assert 3 in (result.exit_code, getattr(result.exception, "exit_code", 0))
    assert "a web page (HTML), not a" in str(result.exception) + result.output


def test_a_file_cut_off_is_what_it_was(tmp_path: Path) -> None:
    save_tensors({"a": torch.ones(1000)}, tmp_path / "m.safetensors")
    torch.save({"a": torch.ones(1000)}, tmp_path / "m.pt")
    for name, kind in (("m.safetensors", "safetensors"), ("m.pt", "torch")):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:900])
        assert file_kind(path) == kind
        with pytest.raises(InputError, match="cannot be read as a checkpoint: "):
            open_tensors(path)
