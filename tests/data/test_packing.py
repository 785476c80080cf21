"""Rows of whole documents: what stands in them, what is asked, and how they come in batches."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sprunec.compiler.lower import lower
from sprunec.data.batches import IGNORED, Packer
from sprunec.data.encoding import write_apart, write_joined
from sprunec.data.fast_tokenizer import read_fast_tokenizer
from sprunec.data.packing import PackedTexts, Rows, fit, load_packed_texts, padding
from sprunec.data.pairs import PairData, load_pair_data
from sprunec.data.saved import GrowingIds, save_array
from sprunec.data.text import Piece
from sprunec.errors import InputError
from sprunec.families.base import Document
from sprunec.families.cards import read_config
from sprunec.passes.job import Job
from sprunec.passes.read_data import run
from sprunec.plan.plan import read_plan
from tests.conftest import tiny_config, tiny_model
from tests.helpers.small_plans import MODEL, TRAIN, plan, write
from tests.passes.test_read_data import END, LETTERS, end_tokenizer

WIDTH, CONFIG = 20, read_config(MODEL)


def rows_of(found: Rows) -> list[list[int]]:
    return [found[number].tolist() for number in range(len(found))]


def test_documents_fill_rows_and_none_is_cut() -> None:
    found = fit(np.array([3, 8, 2, 5, 4, 8]), 10)
    assert rows_of(found) == [[0], [1], [2, 5], [3, 4]]
    assert padding(np.array([3, 8, 2, 5, 4, 8]), found, 10) == 0.25


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_many_documents_waste_next_to_nothing(seed: int) -> None:
    lengths = np.random.default_rng(seed).geometric(0.01, 2000).clip(max=256)
    found = fit(lengths, 256)
    assert sorted(found.order.tolist()) == list(range(2000))
    sums = np.add.reduceat(lengths[found.order], found.starts[:-1])
    assert sums.max() <= 256 and padding(lengths, found, 256) < 0.01
    firsts = [row[0] for row in rows_of(found)]
    assert firsts == sorted(firsts) and all(row == sorted(row) for row in rows_of(found))


def test_what_asks_for_nothing_stands_nowhere() -> None:
    assert rows_of(fit(np.array([1, 4, 1, 2]), 5, least=2)) == [[1], [3]]


def test_ids_that_come_bit_by_bit_are_written_as_an_array_is(tmp_path: Path) -> None:
    pieces = [np.arange(start, start + 7, dtype=np.int32) for start in range(0, 700, 7)]
    with GrowingIds(tmp_path / "a.npy") as growing:
        for piece in pieces:
            growing.add(piece)
    save_array(tmp_path / "b.npy", np.concatenate(pieces))
    assert growing.size == 700
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def job(folder: Path, documents: list[str], **data: Any) -> Job:
    end_tokenizer(folder)
    (folder / "d.jsonl").write_text("".join(json.dumps({"text": each}) + "\n" for each in documents))
    content = plan(TRAIN)
    content["data"] |= {"source": "jsonl", "path": "d.jsonl", "tokenizer": "tokenizer.json", "held_out": 0.4}
    content["data"] |= {"packing": "documents", "max_length": WIDTH} | data
    (node,) = (node for node in lower(read_plan(write(folder, content))).nodes if node.pass_ == "data")
    out = folder / "out"
    out.mkdir()
    return Job(node.options, {}, node.files, out, "cpu", lambda event: None)


def packed(folder: Path, documents: list[str], **data: Any) -> tuple[PackedTexts, dict[str, Any]]:
    made = job(folder, documents, **data)
    metrics = run(made)
    return load_packed_texts(made.out, Packer(CONFIG, WIDTH, CONFIG.vocab_size), batch_size=2, seed=3), metrics


def said(data: Any) -> list[list[str]]:
    """Of the held-out rows each document, with what is asked behind it; | is the end token."""
    letters = {number: letter for letter, number in LETTERS.items()} | {END: "|"}
    rows = [data.rows[1][number] for number in range(len(data.rows[1]))]
    found = []
    for row in rows:
        found.append([])
        for document in map(data.held_out.document, row):
            text = "".join(letters[i] for i in document.tokens.tolist())
            assert document.targets.tolist() == [*document.tokens[1:].tolist(), IGNORED]
            found[-1].append(text)
    return found


def test_documents_end_with_their_token_and_long_ones_are_cut(tmp_path: Path) -> None:
    documents = ["x" * 60, "abc", "", "a", "abcdefghijklmnopqrs", "defg"]
    data, metrics = packed(tmp_path, documents, held_out=27 / 87)  # behind the x
    assert metrics["training_tokens"] == 61 and metrics["held_out_tokens"] == 27 + 4
    # a prompt of 2 positions stands in front of each document: 18 tokens are left to one
    assert said(data) == [["abc|", "a|", "defg|"], ["abcdefghijklmnopqr"], ["s|"]]
    assert metrics["rows"] == 4 and metrics["padding"] == pytest.approx(11 / 80)


def test_a_document_that_the_parts_share_ends_where_it_ends(tmp_path: Path) -> None:
    data, _ = packed(tmp_path, ["abcdefghij"], held_out=0.4)
    assert said(data) == [["ghij|"]]
    assert data.train.document(0).tokens.tolist() == [LETTERS[letter] for letter in "abcdef"]


def test_every_epoch_shows_every_row_once_and_a_batch_is_a_function_of_its_step(tmp_path: Path) -> None:
    documents = [chr(97 + number) * (1 + number % 7) for number in range(26)] * 2
    data, metrics = packed(tmp_path, documents, held_out=0.3)
    size = metrics["rows"]
    rows = [row for step in range(size) for row in data.batch(step).inputs["input"].tolist()]
    assert sorted(rows[:size]) == sorted(rows[size : 2 * size]) and rows[:size] != rows[size : 2 * size]
    again = load_packed_texts(tmp_path / "out", data.packer, batch_size=2, seed=3)
    assert again.batch(5).inputs["input"].tolist() == data.batch(5).inputs["input"].tolist()
    spans = data.batch(0).inputs["span"]
    assert int(spans.max()) > 1  # several documents, which do not see each other


@pytest.mark.parametrize("step", [0, 3])
def test_distinct_rows_are_those_of_an_epoch_from_a_step_on(step: int, tmp_path: Path) -> None:
    documents = [chr(97 + number) * (1 + number % 7) for number in range(26)] * 2
    data, metrics = packed(tmp_path, documents, held_out=0.3)
    size, some, more = metrics["rows"], list(data.distinct_batches(step, 2)), list(data.distinct_batches(step, 99))
    assert some[0].inputs["input"].tolist() == data.batch(step).inputs["input"].tolist()
    epoch = [row for number in range(size) for row in data.batch(number).inputs["input"].tolist()][:size]
    rows = [row for batch in more for row in batch.inputs["input"].tolist()]
    assert len(some) == 2 and sorted(rows) == sorted(epoch)


def test_held_out_rows_ask_for_each_target_once_and_stop(tmp_path: Path) -> None:
    documents = ["abcdef"] * 20
    data, _ = packed(tmp_path, documents, held_out=0.5)
    counts = [sum(batch.target_count for batch in data.held_out_batches(tokens)) for tokens in (1, 12, 13, None)]
    assert counts == [12, 12, 24, 60]  # two documents a row, of six letters and the end


def test_pairs_share_rows(tmp_path: Path) -> None:
    pairs = [(chr(97 + number), "b" * (number % 3)) for number in range(20)]
    lines = [json.dumps({"input": one, "target": other}) + "\n" for one, other in pairs]
    (tmp_path / "p.jsonl").write_text("".join(lines))
    end_tokenizer(tmp_path)
    found = {}
    for packing in ("concatenated", "documents"):
        more = {} if packing == "concatenated" else {"packing": packing}
        content = plan(TRAIN)
        content["data"] |= {
            "source": "pairs",
            "path": "p.jsonl",
            "tokenizer": "tokenizer.json",
            "max_length": 40,
        } | more
        (node,) = (node for node in lower(read_plan(write(tmp_path, content))).nodes if node.pass_ == "data")
        out = tmp_path / packing
        out.mkdir()
        metrics = run(Job(node.options, {}, node.files, out, "cpu", lambda event: None))
        data = load_pair_data(out, Packer(CONFIG, 40, CONFIG.vocab_size), batch_size=4, seed=3)
        assert isinstance(data, PairData)
        found[packing] = metrics, sum(batch.target_count for batch in data.held_out_batches())
    (plain, targets), (dense, same) = found.values()
    assert targets == same and (plain["pairs"], dense["pairs"]) == (18, 18)
    assert (plain["rows"], dense["rows"]) == (18, 3)
    assert plain["padding"] > 0.8 and dense["padding"] < 0.2


def test_a_part_without_two_tokens_in_a_row_is_an_input_error(tmp_path: Path) -> None:
    end_tokenizer(tmp_path, eos_token=None)
    made = job(tmp_path, ["abcdefgh", "a"], held_out=0.1)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InputError, match="the held-out part has no document of 2 tokens"):
        run(made)


@pytest.mark.parametrize("packs", [False, True])
def test_no_more_than_some_documents_are_in_memory(packs: bool, tmp_path: Path) -> None:
    tokenizer = read_fast_tokenizer(end_tokenizer(tmp_path))
    documents = (Piece(number % 10 == 9, "abcdefgh " * 40) for number in range(20_000))
    tracemalloc.start()
    if packs:
        found = [size for size, _, _ in write_apart(tmp_path, documents, tokenizer, 512, 512)]
    else:
        found = write_joined(tmp_path, documents, tokenizer)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(found) == 20_000 * 361 - (0 if packs else 2)
    assert peak < sum(found)  # a quarter of what the ids alone would take


def test_a_document_in_a_row_of_a_cpm_ant_is_a_document_alone() -> None:
    model, draw = tiny_model().double().eval(), np.random.default_rng(0)
    texts = [draw.integers(0, 97, size) for size in (9, 4, 6)]
    documents = [Document(text, np.zeros(text.size, dtype=bool), text) for text in texts]
    packer = Packer(tiny_config(), 40, tiny_config().vocab_size)
    with torch.no_grad():
        found = model(**packer.pack([documents]).inputs)[0][0]
        start = 0
        for document in documents:
            (wanted,) = model(**packer.pack([[document]]).inputs)[0]
            end = document.tokens.size + tiny_config().overhead
            assert float((found[start : start + end] - wanted[:end]).abs().max()) < 1e-10
            start += end
