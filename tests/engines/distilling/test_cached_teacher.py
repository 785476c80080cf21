"""What is kept of a teacher: held against its logits in memory, found again in whatever batch it is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sprunec.checkpoint.reader import Tensors
from sprunec.data.batches import Batch, places_of
from sprunec.engines.distilling.cached_teacher import CachedTeacher, sequence_keys, write_index, write_part
from sprunec.engines.distilling.divergences import TopTokens
from sprunec.errors import PassError
from sprunec.models import held_out
from sprunec.models.meta_models import empty_model
from sprunec.models.top_tokens import top_tokens
from tests.conftest import tiny_config, tiny_model
from tests.engines.test_loop import batch
from tests.helpers.block_by_block import CPU, way_through

TOKENS = 97


def logits_of(data: Batch, on: str) -> Tensor:
    with torch.no_grad():
        logits: Tensor = tiny_model(2)(**data.inputs)[0][places_of(data, on)]
    return logits


def found(batches: list[Batch], top_k: int, temperature: float = 1.0, on: str = "targets") -> list[TopTokens]:
    way = way_through(tiny_config(), empty_model(tiny_config()), Tensors(tiny_model(2).state_dict()), batches)
    return list(top_tokens(way, CPU, top_k, temperature=temperature, on=on, before=[]))


@pytest.mark.parametrize(("top_k", "numbers"), [(1, 2**24), (5, 150), (5, 2**24), (20, 400), (TOKENS, 700)])
@pytest.mark.parametrize("on", ["targets", "all"])
def test_the_most_likely_tokens_come_out_whatever_parts_the_head_is_in(
    top_k: int, numbers: int, on: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_out, "LOGITS", numbers)
    batches = [batch(0), batch(1)]
    for known, data in zip(found(batches, top_k, 2.0, on), batches, strict=True):
        logits = logits_of(data, on) / 2.0
        wanted = logits.log_softmax(1).topk(top_k, 1)
        assert torch.equal(known.ids, wanted.indices)
        assert (known.log_probabilities - wanted.values).abs().max() < 1e-4
        rest = logits.scatter(1, wanted.indices, -torch.inf).logsumexp(1) - logits.logsumexp(1)
        if top_k < TOKENS:
            assert (known.rest - rest).abs().max() < 1e-4
        else:
            assert known.rest.eq(-torch.inf).all()


def cache(
    folder: Path, batches: list[Batch], top_k: int = 5, on: str = "targets", temperature: float = 1.0
) -> CachedTeacher:
    """One part a batch."""
    for number, each in enumerate(found(batches, top_k, temperature, on)):
        write_part(folder, number, [each])
    keys = [key for data in batches for key in sequence_keys(data)]
    positions = [count for data in batches for count in places_of(data, on).sum(1).tolist()]
    write_index(folder, keys, positions, [len(data.targets) for data in batches])
    return CachedTeacher(folder)


def test_what_is_read_is_what_was_found_but_for_rounding(tmp_path: Path) -> None:
    batches = [batch(0), batch(1), batch(2)]
    read = cache(tmp_path, batches)
    for data, wanted in zip(batches, found(batches, 5), strict=True):
        known = read.of(data)
        assert torch.equal(known.ids, wanted.ids)
        assert torch.equal(known.rest, wanted.rest)
        assert torch.equal(known.log_probabilities, wanted.log_probabilities.half())


def test_a_sequence_is_found_in_any_batch(tmp_path: Path) -> None:
    one, other = batch(0), batch(1)
    read = cache(tmp_path, [one, other], on="all")
    mixed = Batch(
        {name: torch.stack([other.inputs[name][2], one.inputs[name][3], other.inputs[name][2]]) for name in one.inputs},
        torch.stack([other.targets[2], one.targets[3], other.targets[2]]),
    )
    known, (first, second) = read.of(mixed), found([one, other], 5, on="all")
    starts = [[0, *places_of(data, "all").sum(1).cumsum(0).tolist()] for data in (one, other)]
    rows = [second.ids[starts[1][2] : starts[1][3]], first.ids[starts[0][3] : starts[0][4]]]
    assert torch.equal(known.ids, torch.cat([*rows, rows[0]]))


def test_what_a_sequence_is_asked_for_and_given_decides_its_key() -> None:
    data = batch(0)
    keys = sequence_keys(data)
    assert len(set(keys)) == 4
    assert sequence_keys(Batch({**data.inputs}, data.targets)) == keys
    inputs = {name: tensor.clone() for name, tensor in data.inputs.items()}
    inputs["input"][1, 2] += 1
    targets = data.targets.clone()
    targets[3, 6] += 1
    changed = sequence_keys(Batch(inputs, targets))
    assert [key == before for key, before in zip(changed, keys, strict=True)] == [True, False, True, False]


def test_a_sequence_that_is_not_there_is_told(tmp_path: Path) -> None:
    read = cache(tmp_path, [batch(0)])
    with pytest.raises(PassError, match="made for other sequences than these"):
        read.of(batch(7))
