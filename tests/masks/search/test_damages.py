"""Damages of choices are what a whole model in memory says of them, wherever its states lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sprunec.checkpoint.writer import as_outputs
from sprunec.data.batches import Batch
from sprunec.families.base_config import everything
from sprunec.families.model_directory import save_outputs
from sprunec.masks.search.damages_file import Damages
from tests.conftest import tiny_config, tiny_model
from tests.helpers.choices import OPTIONS, damages
from tests.helpers.cut_lms import saved
from tests.helpers.naive_choices import NAMES, Naive, batches

UNITS = {"gpt2": ("head", "dim_ff", "layer", "block"), "cpm_ant": ("head", "dim_ff", "layer", "block")}
GROUPED = ("kv_group", "head", "dim_ff", "layer", "block")
GRID = {"dim_ff": [7, 30], "num_heads": [2, 4]}


def model_in(kind: str, directory: Path) -> Any:
    """Save a small model as an artifact; give it in memory."""
    if kind == "cpm_ant":
        model, config = tiny_model(), tiny_config()
        state = model.state_dict()
    else:
        model, config, tensors = saved(kind, directory / "class")
        state = {name: tensors[name] for name in tensors}
    save_outputs(directory / "model", config, everything(config), as_outputs(state))
    return model


def measured(kind: str, directory: Path, given: list[Batch], **changes: Any) -> Damages:
    units = UNITS.get(kind, GROUPED)
    return damages(directory / "model", directory / "out", given, units, **{"grid": GRID} | changes)


def same(found: Damages, wanted: dict[Any, float]) -> None:
    assert len(found.choices) == len(wanted) and found.choices
    for choice, damage in found.choices:
        assert damage == pytest.approx(wanted[key(choice)], rel=2e-4, abs=1e-7), choice


def key(choice: Any) -> Any:
    return choice.layer, choice.sublayer, tuple(choice.kept.items())


@pytest.mark.parametrize("kind", list(NAMES))
@pytest.mark.parametrize("damage", ["fisher", "kl"])
def test_a_damage_is_what_the_model_in_memory_says(kind: str, damage: str, tmp_path: Path) -> None:
    model, given = model_in(kind, tmp_path), batches(kind)
    found = measured(kind, tmp_path, given, damage=damage)
    naive = Naive(kind, model, given, found, OPTIONS["ridge"])
    wanted = {key(choice): value for choice, value in (naive.fisher() if damage == "fisher" else naive.divergence())}
    same(found, wanted)
    assert found.tokens == sum(batch.target_count for batch in given[3:])
    assert sum(damage > 1e-4 for _, damage in found.choices) > len(found.choices) / 2
    torch.testing.assert_close(float(len({key(choice) for choice, _ in found.choices})), float(len(found.choices)))
