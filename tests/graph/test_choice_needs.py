"""What measuring choices is said to need: counted by hand, and against the files that it writes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sprunec.engines.checkpoints import Saves
from sprunec.families.base_config import unit_cost
from sprunec.families.model_directory import read_config
from sprunec.graph.model_size import ModelSize
from sprunec.graph.needs import Needs
from sprunec.models.hidden_states import FILES
from sprunec.passes import score_choices
from sprunec.passes.score_choices import ChoiceOptions
from sprunec.plan.targets import Left
from tests.helpers.causal_lms import VOCABULARY
from tests.helpers.choices import OPTIONS, damages
from tests.helpers.naive_choices import batches
from tests.masks.search.test_damages import GRID, model_in

UNITS = ("kv_group", "dim_ff", "layer")
LAYERS, WIDTH, HEADS, DIMS = 2, 48, 60, 56  # of the small model, and how wide its sublayers are inside
TEXT = 2 * 2 * 40  # positions


def needed(directory: Path, keep: str = "disk", config: Any = None, **changes: Any) -> Needs:
    options = ChoiceOptions(
        **OPTIONS | {"units": UNITS, "grid": GRID, "batch_size": 2, "max_length": 40, "damage_batches": 2} | changes
    )
    size = ModelSize(Left.of(config or read_config(directory / "model")), 4)
    build: Any = SimpleNamespace(sizes={"it": size}, keep=keep)
    node: Any = SimpleNamespace(inputs={"model": "it"}, options=options)
    return score_choices.needs(build, node)


@pytest.mark.parametrize("damage", ["fisher", "kl"])
def test_what_is_written_is_what_was_said(damage: str, tmp_path: Path) -> None:
    model_in("llama", tmp_path)
    options = {"engine": {"hidden_states": "disk"}, "grid": GRID, "damage": damage}
    saves = Saves(tmp_path / "partial", 1, lambda: False)
    damages(tmp_path / "model", tmp_path / "out", batches("llama"), UNITS, saves=saves, **options)
    written = sum(path.stat().st_size for name in FILES for path in (tmp_path / "partial").rglob(name))
    assert needed(tmp_path, damage=damage).scratch == written


def test_fisher_takes_what_is_counted_by_hand(tmp_path: Path) -> None:
    model_in("llama", tmp_path)
    states, block = 4 * WIDTH * TEXT, unit_cost(read_config(tmp_path / "model"), 0, "block")
    found = needed(tmp_path)
    assert found.memory["blocks"] == 2 * 4 * block
    assert found.memory["states"] == 2 * states
    assert needed(tmp_path, "memory").memory["states"] == 4 * WIDTH * 240 + LAYERS * 3 * states + 2 * states
    assert found.memory["moments"] == 0  # a backward pass takes more
    assert found.operations["float64"] == pytest.approx(LAYERS * (HEADS**3 + DIMS**3) / 3)  # a factor for each
    assert needed(tmp_path, grid={"dim_ff": [7, 8, 30]}).operations == found.operations
    twice = needed(tmp_path, samples=2)
    assert twice.operations["float64"] == found.operations["float64"]
    by_gradients = LAYERS * sum(width**2 + 2 * width * WIDTH for width in (HEADS, DIMS))
    more = twice.operations["float32"] - found.operations["float32"]
    assert more == TEXT * (by_gradients + 2 * WIDTH * VOCABULARY)  # and one more through the head


def test_a_wide_layer_takes_a_factor(tmp_path: Path) -> None:
    model_in("llama", tmp_path)
    config = read_config(tmp_path / "model")
    wide = config.with_layers([layer.resized({"dim_ff": 4000}) for layer in config.layers])
    rounded, factor = 2 * (HEADS**2 + 4000**2), 4 * 4000**2
    assert needed(tmp_path, config=wide).memory["moments"] == rounded + factor


def test_divergence_takes_the_blocks_behind_each_choice(tmp_path: Path) -> None:
    model_in("llama", tmp_path)
    found, more = (needed(tmp_path, damage="kl", grid={"dim_ff": dims}) for dims in ([30], [20, 30]))
    assert found.memory["blocks"] == 3 * 4 * unit_cost(read_config(tmp_path / "model"), 0, "block")
    blocks = needed(tmp_path, damage="kl", grid={"dim_ff": [30]}, units=("dim_ff",)).operations["float32"]
    assert more.operations["float32"] > found.operations["float32"] > blocks
    twice = needed(tmp_path, damage="kl", grid={"dim_ff": [20, 30]}, damage_batches=4)
    fitted = needed(tmp_path, damage="kl", grid={"dim_ff": [20, 30]}, damage_batches=0)
    one, both = (each.operations["float32"] - fitted.operations["float32"] for each in (more, twice))
    assert both == pytest.approx(2 * one)
