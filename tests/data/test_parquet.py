"""Texts in Parquet tables: row by row, and what cannot be read is one error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from sprunec.data.parquet import ROWS, read_column
from sprunec.data.text import read_documents, read_text
from sprunec.errors import Diagnostic, InputError


def table(path: Path, column: str = "text", kind: Any = None, **more: list[Any]) -> Path:
    texts = more.pop("texts", ["one", "", None, "zwölf\nlines"])
    columns = {column: pyarrow.array(texts, kind)} | {name: pyarrow.array(values) for name, values in more.items()}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=2)
    return path


def told(path: Path, column: str = "text") -> Diagnostic:
    with pytest.raises(InputError) as caught:
        list(read_column(path, column))
    (finding,) = caught.value.diagnostics
    return finding


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary("int32", "string")])
def test_rows_are_documents_in_their_order(kind: Any, tmp_path: Path) -> None:
    first, second = table(tmp_path / "a.parquet", kind=kind), table(tmp_path / "b.parquet", texts=["two"])
    assert list(read_column(first, "text")) == ["one", "", "zwölf\nlines"]
    assert read_text("parquet", [second, first], "text") == "two\none\n\nzwölf\nlines"
    assert list(read_documents("parquet", [second], "text")) == ["two"]


def test_another_column_may_have_the_texts(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", "content.raw", id=[1, 2, 3, 4])
    assert next(read_column(path, "content.raw")) == "one"


def test_a_table_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = table(tmp_path / "a.parquet", texts=[str(number) for number in range(10 * ROWS)]), []
    batches = pyarrow.parquet.ParquetFile.iter_batches

    def counted(self: Any, *arguments: Any, **options: Any) -> Any:
        for batch in batches(self, *arguments, **options):
            read.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", counted)
    texts = read_column(path, "text")
    assert next(texts) == "0"
    assert read == [ROWS]
    assert list(texts)[-1] == str(10 * ROWS - 1)


def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    found = told(table(tmp_path / "a.parquet", "content", id=[1, 2, 3, 4]))
    assert (found.file, found.message) == (str(tmp_path / "a.parquet"), "has no column text")
    assert found.hint == 'its columns are content, id: name one by "column"'
    assert told(tmp_path / "a.parquet", "id").message == "its column id has int64 and no text"


def test_a_broken_table_is_told(tmp_path: Path) -> None:
    whole = table(tmp_path / "a.parquet").read_bytes()
    for name, content in {
        "short": whole[:-9],
        "empty": b"",
        "text": b"PAR1 text",
        "hurt": b"PAR1" + b"\0" * 200,
    }.items():
        (tmp_path / name).write_bytes(content)
        assert told(tmp_path / name).message.startswith("cannot be read as a Parquet table: ")
    middle = bytearray(whole)
    middle[4:60] = b"\xff" * 56
    (tmp_path / "inside").write_bytes(middle)
    assert told(tmp_path / "inside").message.startswith("cannot be read as a Parquet table: ")
    assert told(tmp_path / "none").message == "there is no such file"


def test_text_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    bad = pyarrow.array([b"fine", b"\xff\xfe"], pyarrow.binary()).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": bad}), tmp_path / "a.parquet")
    assert "codec can't decode byte 0xff" in told(tmp_path / "a.parquet").message


def test_the_package_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    found = told(path)
    assert (found.pointer, found.message) == ("/data/source", "Parquet tables need the package pyarrow")
    assert found.hint == "pip install 'sprunec[parquet]'"
