"""Text as Windows, old Macs and Linux save it: every reader of a text takes it alike, or says where it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sprunec.bmcook.data.set_writer import documents
from sprunec.checkpoint.layouts import weight_files
from sprunec.checkpoint.provenance import describe_origin, note_path, read_provenance, write_origin, write_provenance
from sprunec.checkpoint.writer import write_state
from sprunec.compiler.inspect import inspect_model
from sprunec.data.pair_files import read_pairs
from sprunec.data.text import read_text as read_source_text
from sprunec.data.text import split_text
from sprunec.errors import Diagnostic, InputError
from sprunec.families.base_config import everything
from sprunec.families.model_directory import save_model
from sprunec.families.vocabulary import read_vocabulary
from sprunec.mask_files.reading import read_mask_file
from sprunec.models.loading import load
from sprunec.plan.model_config import read_config
from sprunec.plan.plan import check_plan, read_plan
from sprunec.text_files import read_json, read_lines, read_text
from tests.conftest import tiny_config, tiny_model
from tests.helpers.bmcook_files import CONFIG, FINE, bmcook, write
from tests.helpers.small_plans import TINY, artifact, execute, plan

MARK = b"\xef\xbb\xbf"
WAYS = {
    "mark": lambda text: MARK + text,
    "crlf": lambda text: text.replace(b"\n", b"\r\n"),
    "cr": lambda text: text.replace(b"\n", b"\r"),
    "mark and crlf": lambda text: MARK + text.replace(b"\n", b"\r\n"),
}
SPECIAL = ["<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>"]
LINES = "\n".join(json.dumps({"text": f"word {n} ä", "input": f"i{n}", "target": f"t{n}"}) for n in range(9))


def plain(path: Path) -> Any:
    return read_source_text("text", [path])


def config_of_directory(path: Path) -> Any:
    save_model(path.parent / "model", tiny_config(), everything(tiny_config()), tiny_model().state_dict())
    (path.parent / "model/config.json").write_bytes(path.read_bytes())
    return {name: tuple(tensor.shape) for name, tensor in load(path.parent / "model").state_dict().items()}


def shard_index(path: Path) -> Any:
    index = path.parent / "m.safetensors.index.json"
    index.write_bytes(path.read_bytes())
    for name in ("x.safetensors", "y.safetensors"):
        (path.parent / name).touch()
    return [file.name for file in weight_files(index)]


def mask(path: Path) -> Any:
    return [(sheet.unit, sheet.kept.tolist()) for sheet in read_mask_file(path.rename(path.with_suffix(".json")))]


def plan_content(path: Path) -> Any:
    read = read_plan(path)
    return read.name, read.passes


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "text": ("first\nsecond ä\n\nlast", plain),
    "held-out text": ("first\nlast\n", lambda path: split_text("all", [path], "text")),
    "jsonl": (LINES, lambda path: read_source_text("jsonl", [path])),
    "held-out jsonl": (LINES, lambda path: split_text("all", [path], "jsonl")),
    "pairs": (LINES, lambda path: list(read_pairs([path]))),
    "vocabulary": ("\n".join([*SPECIAL, "好", "a"]), lambda path: read_vocabulary(path).pieces),
    "make-data text": ("one <n> two\nthree\n", lambda path: list(documents(path))),
    "make-data jsonl": (LINES, lambda path: list(documents(path.rename(path.with_suffix(".jsonl"))))),
    "plan": (json.dumps(plan({"pass": "train", "steps": 2}), indent=1), plan_content),
    "config": (json.dumps(TINY, indent=1), lambda path: read_config(str(path))),
    "inspected config": (
        json.dumps(TINY, indent=1),
        lambda path: inspect_model(path.rename(path.with_suffix(".json"))),
    ),
    "config of a directory": (json.dumps(TINY, indent=1), config_of_directory),
    "mask": (json.dumps([[True, False], [False, False]], indent=1), mask),
    "index": (json.dumps({"weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}, indent=1), shard_index),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reader", READERS)
def test_text_is_the_same_however_it_is_saved(reader: str, way: str, tmp_path: Path) -> None:
    text, read = READERS[reader]
    found = []
    for number, content in enumerate((text.encode(), WAYS[way](text.encode()))):
        path = tmp_path / str(number) / "file"
        path.parent.mkdir()
        path.write_bytes(content)
        found.append(read(path))
    assert found[0] == found[1]
    assert found[0]


@pytest.mark.parametrize("reader", sorted({*READERS} - {"index"}))
def test_a_byte_that_is_no_utf8_is_told_by_line_and_column(reader: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(MARK + b"{\r\n" + "é ".encode() + b"\xe9\r\n}")
    (found,) = told(lambda: READERS[reader][1](path))
    assert (found.code, found.line, found.column, found.message) == ("not-utf8", 2, 3, "byte 0xe9 is not UTF-8")


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("reader", sorted({*READERS} - {"index"}))
def test_other_codings_are_told_by_name(reader: str, coding: str, tmp_path: Path) -> None:
    if coding == "utf-32" and reader != "text":
        return
    path = tmp_path / "file"
    path.write_bytes(READERS[reader][0].encode(coding))
    (found,) = told(lambda: READERS[reader][1](path))
    name = "UTF-32" if coding == "utf-32" else "UTF-16"
    assert found.message.startswith(f"this is {name} text, not ")
    assert (found.code, found.hint) == ("not-utf8", "save it as UTF-8")


def told(read: Callable[[], Any]) -> tuple[Diagnostic, ...]:
    """What a reader says, whether it raises it or gives it back."""
    try:
        found = read()
    except InputError as error:
        return error.diagnostics
    assert found[0] is None
    return tuple(found[1])


def test_bmcooks_files_are_read_as_windows_saves_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, "bmcook.json", bmcook("fine-grained"))
    write(tmp_path, "l0_pruning.json", {"fine-grained": FINE})
    write(tmp_path, "cpm-ant-1b.json", CONFIG)
    before = [(f.code, f.message) for f in check_plan(path)[1]]
    assert {code for code, _ in before} == {"assumed-path", "no-mask-yet"}
    for file in tmp_path.rglob("*.json"):
        file.write_bytes(MARK + file.read_bytes().replace(b"\n", b"\r\n"))
    assert [(f.code, f.message) for f in check_plan(path)[1]] == before


def test_notes_beside_masks_and_models_are_read_with_a_mark(tmp_path: Path) -> None:
    file = tmp_path / "heads.pt"
    torch.save({"heads_z": torch.ones(3, 8)}, file)
    write_provenance(file, {"unit": "head", "target": ["num_heads"], "checkpoint": None, "start_step": 0, "steps": 0})
    write_state({"a": torch.ones(1)}, tmp_path)
    write_origin(tmp_path, {"made": "today"})
    before = read_provenance(file), describe_origin(tmp_path)
    assert None not in before
    for path in (note_path(file), tmp_path / "origin.json"):
        path.write_bytes(MARK + path.read_bytes().replace(b"\n", b"\r\n"))
    note, words = read_provenance(file), describe_origin(tmp_path)
    assert (note, (words or {})["made"]) == (before[0], "today")


def test_a_run_has_the_same_ids_with_a_mark_and_other_line_ends(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"text": f"some words to read again, line {n}"}) for n in range(60)).encode()
    ids = []
    for number, content in enumerate((lines, MARK + lines.replace(b"\n", b"\r\n"))):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a.jsonl").write_bytes(content)
        data = {"source": "jsonl", "path": "a.jsonl", "max_length": 34, "batch_size": 4}
        execute(plan({"pass": "train", "steps": 1}, data=data), folder)
        data_set = artifact(folder / "out", "data")
        ids.append({file.name: file.read_bytes() for file in sorted(data_set.glob("*.np*"))})
    assert ids[0] == ids[1]
    assert ids[0]


def test_lines_have_one_end_and_positions_are_counted_by_it(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"a\rb\r\nc\n\xff")
    with pytest.raises(InputError) as caught:
        list(read_lines(path, "text"))
    assert caught.value.diagnostics[0].place == f"{path}:4:1"
    path.write_bytes(b"a\rb\r\nc\n")
    assert list(read_lines(path, "text")) == ["a\n", "b\n", "c\n"]
    assert read_text(path, "text") == "a\nb\nc\n"


def test_a_mark_inside_a_text_is_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(MARK + b"a" + MARK + b"b")
    assert read_text(path, "text") == "a\ufeffb"


def test_json_lines_that_were_joined_may_have_a_mark_in_each(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    part = MARK + b'{"text": "a"}\r\n'
    path.write_bytes(part + part)
    assert read_source_text("jsonl", [path]) == "a\na"


def test_json_that_ends_early_is_told_by_place_in_no_parsers_words(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'{"a": 1,\r\n "b" 2}')
    with pytest.raises(InputError) as caught:
        read_json(path, "a mask file", "save it again")
    (found,) = caught.value.diagnostics
    assert (found.line, found.column, found.hint) == (2, 6, "save it again")
    assert found.message == "this is not a mask file: from here on it is no JSON"
