"""What models are compared on: tokens by size, whole rows while they fit and one at least, as much as memory holds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sprunec.data import compared as room
from sprunec.data.affordable import LEAST_TEXT, LEAST_TOKENS, RANDOM_TEXT, affordable_tokens
from sprunec.data.batches import Batch
from sprunec.data.compared import compared_batches, random_batch
from sprunec.families.cpm_ant.config import ModelConfig
from tests.conftest import tiny_config
from tests.helpers.small_plans import MODEL, execute, plan, save_weights

PROMPT, COLUMNS = 5, 16


def held_out(rows: int, count: int) -> list[Batch]:
    """As `Data.held_out_batches` gives them, of TINY; the last row of each is short."""
    batches = []
    for _ in range(count):
        batch = random_batch(tiny_config(), rows, COLUMNS - PROMPT)
        batch.inputs["length"][-1] = COLUMNS - 3
        batches.append(batch)
    return batches


def groups(asked: int | None, batches: list[Batch] | None = None, **most: int) -> list[list[Batch]]:
    data: Any = None if batches is None else SimpleNamespace(held_out_batches=lambda: iter(batches))
    return list(compared_batches(data, tiny_config(), asked, **most))


def tokens(found: list[list[Batch]]) -> int:
    return sum(batch.targets.numel() for group in found for batch in group)


def test_a_large_model_is_compared_on_the_least_and_a_small_one_on_more() -> None:
    large = ModelConfig.from_dict(MODEL | {"dim_model": 4096, "dim_ff": 10240, "num_layers": 24, "prompt_length": 32})
    assert affordable_tokens(large) == LEAST_TOKENS == 64
    long = ModelConfig.from_dict(large.to_dict() | {"prompt_length": 100})
    assert affordable_tokens(long) == LEAST_TEXT + 100
    small, wider = tiny_config(), tiny_config(dim_ff=400)
    assert affordable_tokens(small) > affordable_tokens(wider) > 10_000
    share = affordable_tokens(small) * small.parameters() / (affordable_tokens(wider) * wider.parameters())
    assert share == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize(
    ("asked", "shapes"),
    [
        (1, [(1, PROMPT + 1)]),
        (PROMPT, [(1, PROMPT + 1)]),
        (PROMPT + 1, [(1, PROMPT + 1)]),
        (COLUMNS - 1, [(1, COLUMNS - 1)]),
        (COLUMNS, [(1, COLUMNS)]),
        (2 * COLUMNS - 1, [(1, COLUMNS)]),
        (5 * COLUMNS + 3, [(3, COLUMNS), (2, COLUMNS)]),
        (10**6, [(3, COLUMNS), (3, COLUMNS)]),
    ],
)
def test_whole_rows_are_taken_while_they_fit_and_one_at_least(asked: int, shapes: list[tuple[int, int]]) -> None:
    found = groups(asked, held_out(3, 2))
    assert [tuple(batch.targets.shape) for group in found for batch in group] == shapes
    for batch in (batch for group in found for batch in group):
        rows, columns = batch.targets.shape
        assert {tuple(t.shape) for name, t in batch.inputs.items() if name != "length"} == {(rows, columns)}
        assert batch.inputs["length"].shape == (rows,) and int(batch.inputs["length"].max()) <= columns


def test_without_a_number_four_batches_are_enough_and_a_form_may_take_fewer() -> None:
    assert tokens(groups(None, held_out(3, 9))) == 4 * 3 * COLUMNS
    assert tokens(groups(None, held_out(3, 9), most=40)) == 2 * COLUMNS
    assert tokens(groups(10**6, held_out(3, 9), most=0)) == PROMPT + 1


@pytest.mark.parametrize("asked", [1, 63, 64, 500, 20_000])
def test_random_words_are_as_many_as_asked_for(asked: int) -> None:
    found, row = tokens(groups(asked)), RANDOM_TEXT + PROMPT
    assert found == max(asked, PROMPT + 1) if asked < row else asked - row < found <= asked
    assert tokens(groups(None)) == 2 * row


def test_what_is_held_at_a_time_is_bounded_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "STATES", 5 * COLUMNS * max(24, 4 * COLUMNS))
    batches = held_out(7, 3)
    found = groups(10**6, batches)
    assert all(sum(batch.targets.size(0) for batch in group) <= 5 for group in found) and len(found) > 4
    words = torch.cat([batch.inputs["input"] for group in found for batch in group])
    assert torch.equal(words, torch.cat([batch.inputs["input"] for batch in batches]))
    assert len(groups(None, batches)) == 1


@pytest.mark.parametrize(("asked", "compared"), [(1, 3), (63, 34), (300, 272)])
def test_the_number_is_in_the_report_of_every_form(asked: int, compared: int, tmp_path: Path) -> None:
    """Rows of one word, too, which an exported program does not take."""
    save_weights(tmp_path / "weights.pt")
    model = {"config": MODEL, "checkpoint": "weights.pt"}
    forms = {"pass": "emit", "formats": ["sprunec", "pt2"]}
    score = {"pass": "score-mask", "criterion": "magnitude", "unit": "head", "target": {"num_heads": 3}}
    report = execute(plan(score, forms, model=model, compare={"tokens": asked}), tmp_path)
    assert report["status"] == "done"
    assert report["comparison"]["tokens"] == report["formats"]["pt2"]["tokens"] == compared
