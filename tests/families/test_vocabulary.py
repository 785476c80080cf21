"""A vocabulary file as CPM-Ant's tokenizer takes it: its rules, its ids, and text that comes back."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import pytest

from sprunec.errors import InputError
from sprunec.families import vocabulary
from sprunec.families.vocabulary import Vocabulary, read_vocabulary

SPECIAL = ["<pad>", "<unk>", "<mask>", "<sep>", "</n>", "</_>", "<s>", "</s>", "<d>", "</d>"]
TEXT = "北京大学的学生在图书馆里读书。\n今天天气很好, we go out 去公园散步!"
PIECES = [*"北京大学的生在图书馆里读今天气很好去公园散步。,!weoutg", "大学", "学生", "图书馆", "今天", "go", "ou"]


def file_of(folder: Path, *lines: str) -> Path:
    path = folder / "vocab.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def words(tmp_path: Path) -> Vocabulary:
    return read_vocabulary(file_of(tmp_path, *SPECIAL, *PIECES))


def test_ids_are_line_numbers_and_two_pieces_are_written_otherwise(tmp_path: Path) -> None:
    found = read_vocabulary(file_of(tmp_path, *SPECIAL, "  好 ", "气\r", ""))
    assert found.pieces[4:6] == ("\n", " ")
    assert found.pieces[10:] == ("好", "气")
    assert (found.unknown, found.begin, found.end, found.size) == (1, 6, 7, 12)


@pytest.mark.parametrize(
    ("lines", "place", "words"),
    [
        ([*SPECIAL, "好", "气", "好"], 13, "'好' stands on line 11 already"),
        ([*SPECIAL, "", "气"], 11, "the line is blank"),
        ([*SPECIAL, "\u3000", "气"], 11, "the line is blank"),
        ([*SPECIAL, "气", " 气"], 12, "stands on line 11 already"),
    ],
)
def test_duplicate_and_blank_lines_are_told_by_line(tmp_path: Path, lines: list[str], place: int, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        read_vocabulary(file_of(tmp_path, *lines))
    assert caught.value.diagnostics[0].line == place


@pytest.mark.parametrize("missing", ["<unk>", "<s>", "</s>"])
def test_a_vocabulary_without_its_marks_is_refused(tmp_path: Path, missing: str) -> None:
    with pytest.raises(InputError, match=f"has no line {missing}"):
        read_vocabulary(file_of(tmp_path, *(piece for piece in SPECIAL if piece != missing), "好"))


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"<unk>\n\xff")
    with pytest.raises(InputError, match="binary:2:1: error: byte 0xff is not UTF-8"):
        read_vocabulary(tmp_path / "binary")
    with pytest.raises(InputError, match="this is a folder"):
        read_vocabulary(tmp_path)


def test_chinese_text_comes_back(words: Vocabulary) -> None:
    ids = words.encode(TEXT)
    assert words.unknown not in ids
    assert words.decode(ids) == TEXT
    assert words.decode([-1, *ids.tolist()[:3], -100]) == words.decode(ids[:3])
    assert len(ids) < len(TEXT)


def test_words_are_cut_into_the_longest_pieces_first(words: Vocabulary) -> None:
    def cut(word: str) -> list[str]:
        return [words.pieces[i] for i in words.pieces_of(word)]

    assert cut("图书馆里") == ["图书馆", "里"]
    assert cut("图书里") == ["图", "书", "里"]
    assert cut("goout") == ["go", "ou", "t"]
    assert cut("图x书") == ["图", "<unk>", "书"]
    assert cut("书" * 200) == ["书"] * 200
    assert cut("书" * 201) == ["<unk>"]


def test_pieces_never_cross_the_words_that_jieba_finds(tmp_path: Path) -> None:
    """学生 is a piece, and yet 大学 | 生 would be another reading of the same text: jieba decides."""
    both = read_vocabulary(file_of(tmp_path, *SPECIAL, "北京大学", "北京", "大学", "学生", "大", "学", "生", "京大"))
    assert [both.pieces[i] for i in both.encode("北京大学生")] != ["北京大学", "生"]
    assert "".join(both.pieces[i] for i in both.encode("北京大学生")) == "北京大学生"


def test_marks_written_in_a_text_are_no_marks(words: Vocabulary) -> None:
    assert words.encode("<s>").tolist() == [words.unknown] * 3


def test_encode_adds_no_marks(words: Vocabulary) -> None:
    assert words.encode("").tolist() == []
    assert not {words.begin, words.end} & set(words.encode(TEXT).tolist())


def test_without_jieba_the_command_that_installs_it_is_told(words: Vocabulary, monkeypatch: Any) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name == "jieba":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(vocabulary, "_CUTTER", [])
    monkeypatch.delitem(sys.modules, "jieba", raising=False)
    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InputError, match=r"needs the package jieba.*pip install 'sprunec\[jieba\]'"):
        words.encode("好")


def test_jieba_leaves_nothing_in_the_shared_folder(words: Vocabulary, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(vocabulary, "_CUTTER", [])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir()
    words.encode("好")
    assert list((tmp_path / "shared").iterdir()) == []
