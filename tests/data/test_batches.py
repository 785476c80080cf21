"""Batches: a function of seed and step, shaped as CPM-Ant wants them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sprunec.data.batches import IGNORED, Batch, Packer, TextData, divided, load_text_data, save_ids
from sprunec.data.saved import SavedIds
from sprunec.data.tokenizer import Characters
from sprunec.errors import InputError
from sprunec.passes.job import Job
from sprunec.passes.read_data import run
from tests.conftest import AS_IT_IS, tiny_config

PROMPT = 5


def text_data(train: int = 200, held_out: int = 50, **changes: Any) -> TextData:
    """Ids that count up, so that every place can be told from every other."""
    options = {"packer": packer(12), "batch_size": 4, "seed": 3} | changes
    counting = np.arange(10, 10 + train, dtype=np.int32), np.arange(1000, 1000 + held_out, dtype=np.int32)
    return TextData(*counting, Characters.build("ab"), **options)


def packer(width: int) -> Packer:
    return Packer(tiny_config(), width)


def same(left: Batch, right: Batch) -> bool:
    pairs = zip(left.inputs.items(), right.inputs.items(), strict=True)
    return torch.equal(left.targets, right.targets) and all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    first, again, other = text_data(), text_data(), text_data(seed=4)
    ahead = [first.batch(step) for step in (9, 2, 7)]
    torch.manual_seed(99), np.random.seed(99)
    assert same(again.batch(7), ahead[2])
    assert same(again.batch(2), ahead[1])
    assert not same(first.batch(7), first.batch(8))
    assert not same(first.batch(7), other.batch(7))


def test_targets_are_the_following_words() -> None:
    batch = text_data().batch(0)
    words = batch.inputs["input"][:, PROMPT:]
    assert torch.equal(batch.targets[:, PROMPT:], words + 1)
    assert (batch.targets[:, :PROMPT] == IGNORED).all()
    assert batch.target_count == 4 * 7
    assert (words.diff(dim=1) == 1).all()


def test_the_prompt_is_task_2_and_segment_0_and_alone_in_context() -> None:
    inputs = text_data().batch(0).inputs
    assert inputs["input"][:, :PROMPT].tolist() == [[10, 11, 12, 13, 14]] * 4
    assert inputs["segment"].tolist() == [[0] * 5 + [2] * 7] * 4
    assert inputs["context"].dtype == torch.bool
    assert inputs["context"].tolist() == [[True] * 5 + [False] * 7] * 4
    assert inputs["length"].tolist() == [12] * 4
    assert inputs["span"].tolist() == [[0] * 12] * 4


def test_training_windows_reach_the_first_and_the_last_token() -> None:
    data = text_data(train=11, batch_size=64)
    batch = data.batch(0)
    assert int(batch.inputs["input"][:, PROMPT:].min()) == 10
    assert int(batch.targets.max()) == 20


def test_distinct_windows_have_no_token_in_common() -> None:
    """200 tokens hold 28 windows of 7, beside the 5 positions of the prompt."""
    data = text_data()
    some, more = (list(data.distinct_batches(3, count)) for count in (5, 100))
    assert [len(batch.targets) for batch in some] == [4] * 5
    assert [len(batch.targets) for batch in more] == [4] * 7
    for batches in (some, more):
        tokens = torch.cat([batch.inputs["input"][:, PROMPT:] for batch in batches]).flatten()
        assert len(tokens.unique()) == len(tokens) == 7 * 4 * len(batches)
    assert all(same(*pair) for pair in zip(some, more, strict=False))
    assert not same(some[0], next(data.distinct_batches(4, 1)))


def test_batches_are_divided_at_any_row() -> None:
    batches = list(text_data().distinct_batches(0, 3))
    for count in (0, 1, 4, 6, 12):
        first, others = divided(batches, count)
        assert [sum(len(batch.targets) for batch in some) for some in (first, others)] == [count, 12 - count]
        rows = [row for batch in (*first, *others) for row in batch.inputs["input"].tolist()]
        assert rows == [row for batch in batches for row in batch.inputs["input"].tolist()]


def test_held_out_windows_ask_for_each_target_once() -> None:
    for length in (2, 8, 50, 57, 58):
        targets = [batch.targets for batch in text_data(held_out=length).held_out_batches()]
        assert sum(len(each) for each in targets) == -((1 - length) // 7)
        asked = torch.cat([each[each != IGNORED] for each in targets])
        assert asked.tolist() == list(range(1001, 1000 + length))


def test_a_short_last_window_is_padded_and_its_length_says_so() -> None:
    (batch,) = text_data(held_out=11, batch_size=8).held_out_batches()
    assert batch.inputs["length"].tolist() == [12, 5 + 4]
    assert batch.inputs["input"][1, PROMPT:].tolist() == [1007, 1008, 1009, 1010, 0, 0, 0]
    assert batch.targets[1].tolist() == [IGNORED] * 5 + [1008, 1009, 1010] + [IGNORED] * 4


def test_held_out_tokens_stop_at_a_window() -> None:
    counts = [sum(b.target_count for b in text_data().held_out_batches(tokens)) for tokens in (1, 7, 8, 10_000)]
    assert counts == [7, 7, 14, 49]


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_shares_of_a_batch_are_its_rows_in_order(parts: int) -> None:
    batch = text_data().batch(0)
    shares = batch.split(parts)
    assert torch.equal(torch.cat([share.targets for share in shares]), batch.targets)
    assert all(torch.equal(torch.cat([s.inputs[k] for s in shares]), v) for k, v in batch.inputs.items())
    assert sum(share.target_count for share in shares) == batch.target_count


def test_saved_data_loads_back(tmp_path: Path) -> None:
    data = text_data()
    save_ids(tmp_path, data.train, data.held_out, data.tokenizer)
    loaded = load_text_data(tmp_path, packer(12), batch_size=4, seed=3)
    assert same(loaded.batch(5), data.batch(5))
    assert loaded.tokenizer == data.tokenizer
    assert isinstance(loaded.train, SavedIds)


@pytest.mark.parametrize(("train", "held_out", "part"), [(7, 50, "training"), (200, 1, "held-out")])
def test_too_little_text_is_an_input_error(tmp_path: Path, train: int, held_out: int, part: str) -> None:
    data = text_data(train, held_out)
    save_ids(tmp_path, data.train, data.held_out, data.tokenizer)
    with pytest.raises(InputError, match=f"the {part} part has {min(train, held_out)} tokens"):
        load_text_data(tmp_path, packer(12), batch_size=4, seed=3)


def test_the_vocabulary_comes_from_the_training_part_only(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abcabcab" + "zz", encoding="utf-8")
    options = {"source": "text", "held_out": 0.2, "vocab_size": 97} | AS_IT_IS
    job = Job(SimpleNamespace(**options), {}, {"paths": (tmp_path / "text.txt",)}, tmp_path, "cpu", lambda event: None)
    metrics = run(job)
    assert metrics == {"training_tokens": 8, "held_out_tokens": 2, "vocabulary": 5, "unknown_share": 1.0}
    data = load_text_data(tmp_path, packer(10), batch_size=1, seed=0)
    assert data.tokenizer.vocabulary == ("<pad>", "<unk>", "a", "b", "c")
    assert data.train[:].tolist() == [2, 3, 4, 2, 3, 4, 2, 3]
    assert data.held_out[:].tolist() == [1, 1]


def test_more_words_than_the_model_has_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abcdef", encoding="utf-8")
    options = {"source": "text", "held_out": 0.2, "vocab_size": 6} | AS_IT_IS
    job = Job(SimpleNamespace(**options), {}, {"paths": (tmp_path / "text.txt",)}, tmp_path, "cpu", lambda event: None)
    with pytest.raises(InputError, match="the text needs 7 tokens, vocab_size is 6"):
        run(job)
