"""Text in, and what is held out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from sprunec.data.file_sets import expanded
from sprunec.data.text import pieces, read_text, split_text
from sprunec.errors import Diagnostic, InputError


def lines(path: Path, *texts: str) -> Path:
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


def finding(path: Path, source: str = "jsonl") -> Diagnostic:
    with pytest.raises(InputError) as caught:
        read_text(source, [path])
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.file == str(path)
    return diagnostic


def test_python_docs_are_the_topics_in_key_order() -> None:
    from pydoc_data.topics import topics

    text = read_text("python-docs", [])
    first, second = sorted(topics)[:2]
    assert text.startswith(topics[first] + "\n" + topics[second])
    assert len(text) == sum(map(len, topics.values())) + len(topics) - 1 > 400_000


def test_files_are_joined_in_the_order_given(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("älter", encoding="utf-8")
    (tmp_path / "b").write_text("neu", encoding="utf-8")
    assert read_text("text", [tmp_path / "b", tmp_path / "a"]) == "neu\nälter"


def test_json_lines_give_their_texts_and_skip_blank_lines(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", '{"text": "one", "id": 1}', "", "  ", '{"text": "t\\u00e4\\nwo"}')
    assert read_text("jsonl", [path]) == "one\ntä\nwo"


@pytest.mark.parametrize("strange", ["\u2028", "\u2029", "\x85"])
def test_separators_inside_a_string_do_not_end_a_line(tmp_path: Path, strange: str) -> None:
    record = {"text": f"before{strange}after"}
    path = lines(tmp_path / "x.jsonl", json.dumps(record, ensure_ascii=False))
    assert read_text("jsonl", [path]) == record["text"]


def test_windows_line_ends_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "one"}\r\n{"text": "two"}\r\n')
    assert read_text("jsonl", [path]) == "one\ntwo"


def test_a_line_that_is_not_json_is_named_by_line_and_column(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", '{"text": "one"}', "", '{"text": "two" "id": 2}')
    diagnostic = finding(path)
    assert (diagnostic.line, diagnostic.column) == (3, 16)
    assert "is not JSON" in diagnostic.message
    assert '{"text": "..."}' in diagnostic.hint
    assert str(diagnostic).startswith(f"{path}:3:16: ")


@pytest.mark.parametrize("line", ['{"body": "x"}', '{"text": 3}', '["text"]', '"text"', "null"])
def test_a_line_without_text_is_named(tmp_path: Path, line: str) -> None:
    diagnostic = finding(lines(tmp_path / "x.jsonl", '{"text": "fine"}', line))
    assert (diagnostic.line, diagnostic.message) == (2, "this line has no `text` string")


def test_a_line_nested_too_deep_is_an_input_error(tmp_path: Path) -> None:
    assert finding(lines(tmp_path / "x.jsonl", "[" * 200_000)).line == 1


@pytest.mark.parametrize("source", ["text", "jsonl"])
def test_bytes_that_are_not_utf8_are_named_by_place(tmp_path: Path, source: str) -> None:
    (tmp_path / "x").write_bytes(b'{"text": "fine"}\n\xff')
    found = finding(tmp_path / "x", source)
    assert (found.line, found.column, found.message) == (2, 1, "byte 0xff is not UTF-8")


def test_a_missing_file_and_a_folder_are_input_errors(tmp_path: Path) -> None:
    assert "there is no such file" in finding(tmp_path / "none", "text").message
    assert "this is a folder" in finding(tmp_path, "text").message


@pytest.mark.parametrize(("share", "kept"), [(0.1, 90), (0.25, 75), (0.005, 100), (0.5, 50)])
def test_the_last_share_of_the_characters_is_held_out(share: float, kept: int) -> None:
    text = "".join(chr(0x100 + i) for i in range(100))
    assert split_text(text, share, "text") == (text[:kept], text[kept:])


def test_a_held_out_file_is_read_as_its_source(tmp_path: Path) -> None:
    plain = lines(tmp_path / "h.txt", "held out")
    records = lines(tmp_path / "h.jsonl", '{"text": "held out"}')
    assert split_text("all", [plain], "python-docs") == ("all", "held out\n")
    assert split_text("all", [records], "jsonl") == ("all", "held out")


@pytest.mark.parametrize("cut", [None, 0, 2, 3, 5, 9, 20])
def test_both_parts_of_documents_are_all_of_them(cut: int | None) -> None:
    found = list(pieces(["abc", "", "de", "fghi"], cut))
    parts = ["".join(piece.text for piece in found if piece.part == part) for part in (0, 1)]
    assert parts == ["abcdefghi"[:cut], "" if cut is None else "abcdefghi"[cut:]]
    assert all(piece.text for piece in found)


def test_parts_keep_their_documents_apart_and_know_which_are_whole() -> None:
    found = [(piece.part, piece.text, piece.ends) for piece in pieces(["abc", "de", "fghi"], 6)]
    assert found == [(0, "abc", True), (0, "de", True), (0, "f", False), (1, "ghi", True)]


def test_lines_packed_by_gzip_are_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}\n'))
    assert read_text("jsonl", [path]) == "one\ntwo"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n{"text": \xff}\n'))
    assert (finding(path).line, finding(path).message) == (2, "byte 0xff is not UTF-8")


@pytest.mark.parametrize("damage", ["end", "middle"])
def test_a_damaged_archive_is_told(damage: str, tmp_path: Path) -> None:
    path, whole = tmp_path / "x.jsonl.gz", gzip.compress(json.dumps({"text": "one " * 999}).encode())
    path.write_bytes(whole[:-9] if damage == "end" else whole[:20] + b"\xff" * 9 + whole[29:])
    assert finding(path).message.startswith("the gzip archive is damaged: ")


def test_another_key_of_json_lines_may_have_the_texts(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", '{"body": "one", "text": 3}')
    assert read_text("jsonl", [path], "body") == "one"


def test_a_directory_means_its_files_and_a_pattern_those_that_it_fits(tmp_path: Path) -> None:
    names = ["b.jsonl", "a.jsonl.gz", "deep/c.jsonl", "a.txt", "x[1].jsonl"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")

    def found(path: str, source: str = "jsonl") -> list[str]:
        return [str(each.relative_to(tmp_path)) for each in expanded(tmp_path / path, source)]

    assert found(".") == ["a.jsonl.gz", "b.jsonl", "deep/c.jsonl", "x[1].jsonl"]
    assert found("*.jsonl") == ["b.jsonl", "x[1].jsonl"] and found("**/*.jsonl") == [
        "b.jsonl",
        "deep/c.jsonl",
        "x[1].jsonl",
    ]
    assert found("x[1].jsonl") == ["x[1].jsonl"] and found("none-*.jsonl") == ["none-*.jsonl"]
    assert found(".", "parquet") == ["."] and found(".", "text") == ["a.txt"] and found(".", "cpm-live") == ["."]
