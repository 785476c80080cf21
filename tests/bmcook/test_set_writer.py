"""Sets we write are sets that CPM-Live reads; text becomes records by its rules."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import sprunec
from sprunec.bmcook.data.set_writer import make_dataset
from sprunec.cli import app
from sprunec.errors import InputError
from sprunec.families.vocabulary import Vocabulary, read_vocabulary
from sprunec.plan.schema import validator
from tests.families.test_vocabulary import PIECES, SPECIAL, file_of
from tests.helpers.live_sets import blocks_of, read_v1, some_records

SENTENCE = "今天天气很好,去公园散步!"
MODEL = 40  # columns of a row, 2 of them the prompt's: pieces of 36


@pytest.fixture
def words(tmp_path: Path) -> Vocabulary:
    return read_vocabulary(file_of(tmp_path, *SPECIAL, *PIECES))


def test_a_written_set_is_read_by_others(tmp_path: Path) -> None:
    records = [*some_records(200), list(some_records(1, longest=400)[0])]
    written = sprunec.write_dataset(tmp_path / "set", records, block_size=4096)
    states, found = read_v1(tmp_path / "set", 4096)
    assert found == records
    content = (tmp_path / "set" / "data_0").read_bytes()
    assert states == [("data_0", 0, len(content) // 4096, states[0][3], 201, False)]
    assert (written.records, written.blocks) == (201, len(content) // 4096)
    assert written.tokens == sum(len(record) - 5 for record in records)


def test_blocks_are_cut_where_cpm_lives_writer_cuts_them(tmp_path: Path) -> None:
    """The bytes are those of plain pickles, by the module name of the numpy of CPM-Live's day."""
    records = some_records(300, longest=120)
    sprunec.write_dataset(tmp_path / "set", records, block_size=2048)
    old, new = b"\x16numpy._core", b"\x15numpy.core"

    def dumped(record: list[int]) -> bytes:
        content = pickle.dumps(np.array(record, dtype=np.int64), protocol=4).replace(old, new)
        return content[:3] + (len(content) - 11).to_bytes(8, "little") + content[11:]

    wanted = b"".join(blocks_of([dumped(r) for r in records], 2048))
    assert (tmp_path / "set" / "data_0").read_bytes() == wanted


@pytest.mark.parametrize(("spare", "blocks"), [(0, 2), (1, 1)])
def test_a_zero_ends_every_block(tmp_path: Path, spare: int, blocks: int) -> None:
    records = [[2, 1, 6, 2, 1, *range(10, 16)]] * 2
    payload = len(pickle.dumps(np.array(records[0], dtype=np.int64), protocol=4)) - 1  # its module name is shorter
    written = sprunec.write_dataset(tmp_path / "set", records, block_size=2 * (1 + payload) + spare)
    assert written.blocks == blocks
    assert (tmp_path / "set" / "data_0").read_bytes()[-1] == 0


def test_records_are_taken_one_by_one(tmp_path: Path) -> None:
    asked = []

    def slowly() -> Iterator[np.ndarray[Any, Any]]:
        for record in some_records(50):
            asked.append((tmp_path / "set").exists())
            yield np.array(record)

    sprunec.write_dataset(tmp_path / "set", slowly(), block_size=1024)
    assert asked == [False] * 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([[2, 1, 3, 2, 1, 5, 6]], "record 0: error: is none: segments of"),
        ([[2, 1, 2, 2, 1, 5, 6], [7]], "record 1: error: is none"),
        ([[2, 1, 200, 2, 1, *[5] * 200]], r"record 0: error: takes 1,7\d\d bytes, and a block has 1,024"),
        ([], "there is not one record"),
    ],
)
def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path, records: list[Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        sprunec.write_dataset(tmp_path / "set", records, block_size=1024)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    sprunec.write_dataset(tmp_path / "set", some_records(3))
    before = (tmp_path / "set" / "data_0").read_bytes()
    with pytest.raises(InputError, match="there is something already; name another directory"):
        sprunec.write_dataset(tmp_path / "set", some_records(9))
    assert (tmp_path / "set" / "data_0").read_bytes() == before


def test_text_becomes_pieces_by_cpm_lives_rules(tmp_path: Path, words: Vocabulary) -> None:
    (tmp_path / "a.txt").write_text(f"  {SENTENCE * 5}<n>?{SENTENCE} \n\n{SENTENCE}\n", encoding="utf-8")
    lines = [{"text": SENTENCE * 9 + "<n>"}, {"text": SENTENCE * 2}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    options: dict[str, Any] = {"prompt_length": 2, "max_length": MODEL, "block_size": 4096}
    inputs = [tmp_path / "a.txt", tmp_path / "b.jsonl"]
    made = make_dataset(tmp_path / "set", inputs, words, **options, seed=3)
    first = words.encode(SENTENCE * 5 + "\n?" + SENTENCE)
    texts = [first, words.encode(SENTENCE), words.encode(SENTENCE * 9 + "<n>"), words.encode(SENTENCE * 2)]
    known = [[i for i in ids.tolist() if i != words.unknown] for ids in texts]
    pieces = [ids[start : start + 36] for ids in known for start in range(0, len(ids), 36)]
    wanted = [[6, *piece, 7] for piece in pieces if len(piece) >= 32]
    found = read_v1(tmp_path / "set", 4096)[1]
    assert [record[5:] for record in found] == wanted
    assert {tuple(record[:2] + record[3:5]) for record in found} <= {(1, 1, 1, 0), (2, 1, 2, 1)}
    assert all(record[2] == len(record) - 5 for record in found)
    unknown = sum(len(ids) for ids in texts) - sum(map(len, known))
    assert (made.documents, made.records, made.unknown) == (4, len(wanted), unknown)
    assert made.tails == len(pieces) - len(wanted) > 0
    assert words.ids["\n"] in known[0] and words.ids["\n"] not in known[2]
    again = make_dataset(tmp_path / "again", inputs, words, **options, seed=3)
    assert again == made
    assert (tmp_path / "again" / "data_0").read_bytes() == (tmp_path / "set" / "data_0").read_bytes()


def test_half_the_pieces_are_to_be_filled_in(tmp_path: Path, words: Vocabulary) -> None:
    (tmp_path / "a.txt").write_text((SENTENCE * 5 + "\n") * 300, encoding="utf-8")
    make_dataset(tmp_path / "set", [tmp_path / "a.txt"], words, prompt_length=2, max_length=MODEL)
    tasks = [record[0] for record in read_v1(tmp_path / "set", 16 << 20)[1]]
    assert 0.4 < tasks.count(1) / len(tasks) < 0.6


def test_make_data_makes_what_a_plan_reads(tmp_path: Path, words: Vocabulary, monkeypatch: Any) -> None:
    (tmp_path / "a.txt").write_text((SENTENCE * 5 + "\n") * 10, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    size = ["--max-length", str(MODEL), "--prompt-length", "2"]
    done = CliRunner().invoke(app, ["make-data", "a.txt", "--out", "set", "--vocab", "vocab.txt", *size])
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    records = len(read_v1(tmp_path / "set", 16 << 20)[1])
    assert done.stdout.startswith(f"set: 10 documents, {records} records, ")


def test_make_data_tells_what_is_wrong(tmp_path: Path, words: Vocabulary) -> None:
    def outcome(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["make-data", *arguments])
        assert isinstance(result.exception, InputError)
        return str(result.exception)

    text, vocab, out = str(tmp_path / "a.txt"), str(tmp_path / "vocab.txt"), str(tmp_path / "set")
    (tmp_path / "a.txt").write_text(SENTENCE, encoding="utf-8")
    assert "there is not one record" in outcome(text, "--out", out, "--vocab", vocab)
    assert "there is no such file" in outcome("none.txt", "--out", out, "--vocab", vocab)
    assert "there is no such file" in outcome(text, "--out", out, "--vocab", "none.txt")
    assert "give at least 66" in outcome(text, "--out", out, "--vocab", vocab, "--max-length", "65")
    assert "something already" in outcome(text, "--out", str(tmp_path), "--vocab", vocab)
    assert not (tmp_path / "set").exists()


def test_make_data_prints_one_document(tmp_path: Path, words: Vocabulary) -> None:
    (tmp_path / "a.txt").write_text((SENTENCE * 5 + "\n") * 3, encoding="utf-8")
    vocab, out = str(tmp_path / "vocab.txt"), str(tmp_path / "set")
    arguments = ["make-data", str(tmp_path / "a.txt"), "--out", out, "--vocab", vocab, "--json"]
    made = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert [error.message for error in validator("dataset").iter_errors(made)] == []
    assert (made["directory"], made["documents"]) == (out, 3)
    assert json.loads(CliRunner().invoke(app, arguments).stdout)["valid"] is False


def test_text_of_another_language_is_told_as_such(tmp_path: Path, words: Vocabulary) -> None:
    (tmp_path / "a.txt").write_text("xyz" * 30, encoding="utf-8")
    with pytest.raises(InputError, match="90 tokens are unknown to the vocabulary"):
        make_dataset(tmp_path / "set", [tmp_path / "a.txt"], words)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
