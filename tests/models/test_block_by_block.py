"""A model gone through block by block: in the memory of two blocks, wherever hidden states lie, and after any kill."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sprunec.checkpoint.reader import Tensors
from sprunec.data.batches import IGNORED, Batch
from sprunec.engines.checkpoints import Saves
from sprunec.engines.losses import language_model_loss
from sprunec.models import held_out
from sprunec.models.block_by_block import few_rows
from sprunec.models.held_out import cross_entropy_sum, groups_of
from sprunec.models.hidden_states import FILES, HiddenStates
from sprunec.models.meta_models import empty_model
from sprunec.models.streamed import Streamed
from tests.conftest import random_batch, tiny_config, tiny_model
from tests.helpers.block_by_block import CPU, scored, way_through
from tests.helpers.causal_lms import token_ids
from tests.helpers.cut_lms import saved

UNITS = ("head", "dim_ff", "layer")


def batches(count: int = 3) -> list[Batch]:
    inputs = [random_batch(context=False, seed=seed) for seed in range(count)]
    return [Batch(each, each["input"].roll(-1, 1).index_fill(1, torch.tensor([0]), IGNORED)) for each in inputs]


def scores(**more: Any) -> dict[Any, Tensor]:
    return scored(tiny_config(), tiny_model().state_dict(), batches(), "reconstruction", *UNITS, **more)


def same(found: dict[Any, Tensor], wanted: dict[Any, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("keep", ["memory", "disk"])
def test_scores_are_the_same_wherever_hidden_states_lie(keep: str, tmp_path: Path) -> None:
    hidden = HiddenStates(CPU, tmp_path, keep)
    assert same(scores(hidden=hidden), scores())
    assert [path.name for path in sorted(tmp_path.iterdir())] == list(FILES)
    assert (hidden._memory is None) == (keep == "disk")
    assert (tmp_path / FILES[0]).stat().st_size == sum(4 * states.numel() for states in hidden)


class Killed(Exception):  # noqa: N818
    """Where a process would have ended."""


class Flaky(Streamed):
    """Ends in the middle of the block that `at` counts to."""

    at = -1
    ran: list[str]

    def holding_whole(self, path: str) -> Any:
        self.ran.append(path)
        if len(self.ran) - 1 == Flaky.at:
            raise Killed
        return super().holding_whole(path)


@pytest.mark.parametrize("keep", ["memory", "disk"])
@pytest.mark.parametrize("damage", [None, "hidden", "save"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_was_killed_goes_on_at_the_block_it_was_at(
    at: int, damage: str | None, keep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, ran = scores(), list[str]()
    monkeypatch.setattr("tests.helpers.block_by_block.Streamed", Flaky)
    monkeypatch.setattr(Flaky, "ran", ran, raising=False)
    monkeypatch.setattr(Flaky, "at", at)

    def run() -> dict[Any, Tensor]:
        saves = Saves(tmp_path, 1, lambda: False)
        return scores(hidden=HiddenStates(CPU, tmp_path, keep), saves=saves)

    with pytest.raises(Killed):
        run()
    assert len(ran) == at + 1
    if damage is not None:
        for path in tmp_path.glob("hidden-*" if damage == "hidden" else "step-*"):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    ran.clear()
    Flaky.at = -1
    assert same(run(), wanted)
    assert len(ran) == (3 if damage else 3 - at)


def test_a_run_that_is_asked_to_stop_stops_behind_the_block(tmp_path: Path) -> None:
    asked = Saves(tmp_path, 1, lambda: True)
    with pytest.raises(KeyboardInterrupt):
        scores(hidden=HiddenStates(CPU, tmp_path), saves=asked)
    assert asked.latest() is not None and asked.latest()["done"] == 1
    assert same(scores(hidden=HiddenStates(CPU, tmp_path), saves=Saves(tmp_path, 1, lambda: False)), scores())


def test_no_more_than_two_blocks_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alive, most, read = set[int](), list[int](), Streamed._read

    def counted(self: Streamed, path: str) -> dict[str, Tensor]:
        found = {name: tensor.clone() for name, tensor in read(self, path).items()}
        for tensor in found.values():
            alive.add(key := id(tensor))
            weakref.finalize(tensor, alive.discard, key)
        most.append(len(alive))
        return found

    monkeypatch.setattr(Streamed, "_read", counted)
    scores()
    each = len(list(tiny_model().encoder.layers[0].parameters()))
    assert max(most) == 2 * each and len(most) == 3


def in_memory(model: nn.Module, given: Sequence[Batch]) -> float:
    with torch.no_grad():
        return sum(float(language_model_loss(model.eval(), batch)) for batch in given)


@pytest.mark.parametrize("numbers", [2**24, 1000, 1], ids=["at once", "in parts", "token by token"])
def test_the_held_out_loss_is_that_of_the_model_in_memory(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "LOGITS", numbers)
    model, config = tiny_model(), tiny_config()
    way = way_through(config, empty_model(config), Tensors(model.state_dict()), batches())
    assert cross_entropy_sum(way, CPU, None) == pytest.approx(in_memory(model, batches()), rel=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_the_held_out_loss_of_a_causal_lm_is_that_of_its_class(kind: str, tmp_path: Path) -> None:
    (model, config, tensors), ids = saved(kind, tmp_path), token_ids(3, 40)
    batch = Batch({"input": ids, "length": torch.tensor([40] * 3)}, ids.roll(-1, 1))
    with torch.no_grad():
        logits = model(input_ids=ids).logits.flatten(0, 1)
        wanted = nn.functional.cross_entropy(logits, batch.targets.flatten(), reduction="sum")
    way = way_through(config, empty_model(config), tensors, [batch])
    assert cross_entropy_sum(way, CPU, None) == pytest.approx(float(wanted), rel=1e-5)


def test_rows_are_split_so_that_no_state_inside_a_block_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    (batch,) = batches(1)
    rows, width = batch.targets.shape
    monkeypatch.setattr("sprunec.plan.scale.INSIDE", width * 40)
    parts = list(few_rows([batch], tiny_config()))
    assert [part.targets.size(0) for part in parts] == [1] * rows
    assert torch.equal(torch.cat([part.targets for part in parts]), batch.targets)
    whole = scored(tiny_config(), tiny_model().state_dict(), [batch], "activation", *UNITS)
    split = scored(tiny_config(), tiny_model().state_dict(), parts, "activation", *UNITS)
    assert all(torch.allclose(split[key], whole[key], rtol=1e-5) for key in whole)


def test_batches_go_through_together_as_far_as_their_hidden_states_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    given = batches(5)
    monkeypatch.setattr(held_out, "TOGETHER", 2 * given[0].targets.numel() * tiny_config().width)
    groups = list(groups_of(given, tiny_config()))
    assert [len(group) for group in groups] == [2, 2, 1] and [batch for group in groups for batch in group] == given
