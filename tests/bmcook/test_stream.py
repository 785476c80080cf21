"""Batches of CPM-Live's sets: which documents are shown when, what is hidden in them, and how they share rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sprunec.bmcook.data.records import Records, make_example, make_index, parse_record
from sprunec.bmcook.data.set_writer import write_dataset
from sprunec.bmcook.data.sets import read_set
from sprunec.bmcook.data.stream import HELD_OUT, HELD_OUT_KEY, TRAINING, LiveData, Order
from sprunec.data.batches import IGNORED, Packer, draws
from sprunec.engines.losses import language_model_loss
from sprunec.errors import InputError
from sprunec.families.cpm_ant.family import FAMILY
from sprunec.families.cpm_ant.model import CPMAnt
from sprunec.models.decoding import Decoding
from tests.conftest import tiny_config, tiny_model
from tests.data.test_batches import same
from tests.helpers.live_sets import some_records
from tests.helpers.naive import COLUMNS, LIMITS, PROMPT, ROWS, WORDS, as_lists, naive_batch, naive_example, naive_rows


def records_in(folder: Path, records: list[list[int]], block: int = 1024) -> Records:
    write_dataset(folder, records, block_size=block)
    data_set = read_set(folder, block)
    return Records(make_index(data_set, LIMITS), data_set.paths)


def live(
    folder: Path, records: list[list[int]], base: int = 0, seed: int = 3, held_out: int = 10, **options: Any
) -> LiveData:
    train = records_in(folder / "train", records)
    kept = records_in(folder / "held", some_records(held_out, seed=99))
    return LiveData(train, kept, None, Packer(tiny_config(), COLUMNS, base), batch_size=ROWS, seed=seed, **options)


@pytest.mark.parametrize(("order", "base"), [("shuffled", 0), ("shuffled", WORDS), ("stored", 0)])
def test_batches_are_those_of_a_naive_packer(tmp_path: Path, order: str, base: int) -> None:
    records = some_records(60, seed=1)
    data = live(tmp_path, records, base, order=order)
    orders = Order(data.train.index["block"].astype(np.int64), 3, order == "shuffled")
    numbers = np.concatenate([orders.epoch(e) for e in range(3)]).tolist()
    if order == "stored":
        assert numbers == [*range(60)] * 3
    stream = naive_rows([PROMPT + len(records[n]) - 5 for n in numbers], ROWS, COLUMNS)
    for step, rows in enumerate(stream):
        documents = [
            [(records[numbers[p]][0], naive_example(records[numbers[p]], draws(3, p, TRAINING))) for p in row]
            for row in rows
        ]
        assert as_lists(data.batch(step)) == naive_batch(documents, base)
    assert len(stream) > 20


def test_every_epoch_shows_every_record_once_blocks_in_an_order_of_their_own() -> None:
    blocks = np.repeat([0, 1, 2, 5, 7], [4, 3, 1, 6, 2])
    order, again, other = Order(blocks, 3, True), Order(blocks, 3, True), Order(blocks, 4, True)
    epochs = [order.epoch(e).tolist() for e in range(6)]
    assert all(sorted(epoch) == list(range(16)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 6
    assert [again.epoch(e).tolist() for e in (5, 0, 3)] == [epochs[e] for e in (5, 0, 3)]
    assert other.epoch(0).tolist() != epochs[0]
    for epoch in epochs:
        seen = blocks[epoch]
        assert (np.diff(seen) != 0).sum() == 4
    assert len({tuple(dict.fromkeys(blocks[epoch].tolist())) for epoch in epochs}) > 1


def test_batch_is_the_same_in_any_order_of_asking(tmp_path: Path) -> None:
    data = live(tmp_path, some_records(60, seed=1))
    straight = [data.batch(step) for step in range(30)]
    torch.manual_seed(9), np.random.seed(9)
    other = LiveData(data.train, data.held_out, None, data.packer, batch_size=ROWS, seed=3)
    for step in (29, 3, 17, 0, 18, 29):
        assert same(other.batch(step), straight[step])
    changed = LiveData(data.train, data.held_out, None, data.packer, batch_size=ROWS, seed=4)
    assert not same(changed.batch(0), straight[0])


def test_processes_share_a_stored_order_by_blocks(tmp_path: Path) -> None:
    records = some_records(80, seed=2)
    data = live(tmp_path, records, order="stored", world=3)
    alone = [records_in(tmp_path / f"r{r}", records) for r in range(3)]
    for rank, part in enumerate(alone):
        part.index = part.index[part.index["block"] % 3 == rank]
        one = LiveData(part, data.held_out, None, data.packer, batch_size=1, seed=3, order="stored")
        for step in range(12):
            share = data.batch(step).split(3)[rank]
            assert share.inputs["input"].tolist() == one.batch(step).inputs["input"].tolist()


@pytest.mark.parametrize(("order", "world"), [("shuffled", 1), ("stored", 1), ("stored", 3)])
def test_distinct_batches_show_no_record_twice(order: str, world: int, tmp_path: Path) -> None:
    data = live(tmp_path, some_records(80, seed=2), order=order, world=world)
    some, more = list(data.distinct_batches(2, 3)), list(data.distinct_batches(2, 200))
    assert all(same(*pair) for pair in zip(some, map(data.batch, range(2, 5)), strict=True))
    shown = [record for rank, row in data._once(range(2, 202)) for _, record in row]
    assert len(set(shown)) == len(shown) > 60
    assert sum(len(batch.targets) for batch in more) == len(list(data._once(range(2, 202))))


def test_processes_that_cannot_share_alike_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 processes cannot share 3 sequences"):
        live(tmp_path, some_records(20), order="stored", world=2)


def test_held_out_targets_are_asked_once_and_whatever_the_seed(tmp_path: Path) -> None:
    data, other = live(tmp_path / "a", some_records(9)), live(tmp_path / "b", some_records(9), seed=8)
    batches = list(data.held_out_batches())
    assert all(same(x, y) for x, y in zip(batches, other.held_out_batches(), strict=True))
    records = some_records(10, seed=99)
    examples = [naive_example(values, draws(HELD_OUT_KEY, i, HELD_OUT)) for i, values in enumerate(records)]
    asked = torch.cat([batch.targets[batch.targets != IGNORED] for batch in batches])
    wanted = [target for example in examples for target in example["targets"] if target != IGNORED]
    assert sorted(asked.tolist()) == sorted(wanted)
    assert len(batches) > 1 and len(batches[-1].targets) <= ROWS
    assert sum(int(batch.inputs["length"].sum()) for batch in batches) == sum(PROMPT + len(r) - 5 for r in records)


@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_held_out_tokens_stop_at_a_record(tmp_path: Path, tokens: int) -> None:
    data = live(tmp_path, some_records(9))
    every = sum(batch.target_count for batch in data.held_out_batches())
    some = sum(batch.target_count for batch in data.held_out_batches(tokens))
    assert tokens <= some < min(tokens + 30, every)


def packed_and_alone() -> tuple[Any, list[Any]]:
    records = [parse_record(np.array(values)) for values in some_records(4, seed=6, longest=8)]
    return tiny_model().double(), [make_example(record, draws(0, place)) for place, record in enumerate(records)]


@torch.no_grad()
def test_a_document_gives_the_same_logits_and_loss_alone_and_packed() -> None:
    """With the prompts of later documents in the prompt table; among the words they are something else."""
    model, examples = packed_and_alone()
    right, released = (Packer(tiny_config(), COLUMNS, base) for base in (WORDS, 0))
    alone = [right.pack([[example]]) for example in examples]
    packed, other = (packer.pack([examples[:2], examples[2:]]) for packer in (right, released))

    def logits(batch: Any) -> torch.Tensor:
        return model(**batch.inputs)[0][batch.targets != IGNORED]

    wanted = torch.cat([logits(batch) for batch in alone])
    assert float((logits(packed) - wanted).abs().max()) < 1e-12
    assert float((logits(other) - wanted).abs().max()) > 1e-2
    loss = sum(float(language_model_loss(model, batch)) for batch in alone)
    assert float(language_model_loss(model, packed)) == pytest.approx(loss, rel=1e-6)
    assert abs(float(language_model_loss(model, other)) - loss) > 1e-3


@torch.no_grad()
def decoding_difference(model: CPMAnt, inputs: dict[str, torch.Tensor]) -> float:
    """How far the hidden states of decoding are from those of one forward."""
    decoding = Decoding(FAMILY, model, inputs)
    for index, layer in enumerate(model.encoder.layers):
        decoding.through(index, f"encoder.layers.{index}", layer)
    steps, whole = decoding.both()
    return float((steps - whole).abs().max())


def test_packed_rows_and_visible_ends_decode_as_one_forward() -> None:
    """What is decoded one by one may be a prompt inside the row, and a visible end does not make it fail."""
    model, examples = packed_and_alone()
    fields = ("tokens", "context", "segment", "targets")
    last = replace(examples[1], **{name: getattr(examples[1], name)[:1] for name in fields})
    used = 2 * PROMPT + examples[0].tokens.size + 1
    for columns in (used, COLUMNS):
        batch = Packer(tiny_config(), columns, WORDS).pack([[examples[0], last]])
        assert int(batch.inputs["input"][0, used - 2]) == WORDS + PROMPT * last.task + PROMPT - 1
        assert decoding_difference(model, batch.inputs) < 1e-12


def test_ids_of_prompts_among_words_are_exact_and_others_unchanged() -> None:
    model = tiny_model()
    ids = torch.tensor([[0, WORDS - 1, WORDS, WORDS + 19, 3]])
    rows = model.look_up(ids)[0]
    words, prompts = model.input_embedding.weight, model.prompt_embedding.weight
    wanted = torch.stack([words[0], words[-1], prompts[0], prompts[19], words[3]]) / model.input_embedding.divisor
    assert torch.equal(rows, wanted)
    rows.sum().backward()
    assert prompts.grad is not None
    assert prompts.grad[1:19].abs().max() == 0 < prompts.grad[0].abs().min()
