"""The names and widths of states are those of the real model, and pairs are read as they are written."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from sprunec.families.states import Pair, Point, state_widths
from tests.conftest import random_batch, tiny_config, tiny_model

CUT = {
    "layers": [
        {"heads": 2, "dim_head": 6, "dim_ff": 20, "kept_heads": [0, 3]},
        {"heads": None, "dim_head": None, "dim_ff": 40},
        {"heads": 4, "dim_head": 6, "dim_ff": None},
    ]
}


@pytest.mark.parametrize("changes", [{}, CUT], ids=["whole", "cut"])
def test_they_are_what_hooks_see(changes: dict[str, Any]) -> None:
    model, seen = tiny_model(**changes), {}
    rows, columns = random_batch()["input"].shape

    def note(name: str, given: Tensor, result: Any) -> None:
        if all(isinstance(x, Tensor) and x.shape[:2] == (rows, columns) and x.dim() == 3 for x in (given, result)):
            seen[name] = (given.size(-1), result.size(-1))

    for name, module in model.named_modules():
        module.register_forward_hook(
            lambda _, given, result, name=name: note(name, given[0], result) if given else None
        )
    with torch.no_grad():
        model(**random_batch())
    assert state_widths(tiny_config(**changes)) == seen


def test_a_pair_is_read_student_first() -> None:
    pair = Pair.read("[post]encoder.layers.1:[pre]encoder.layers.2.ffn")
    assert pair == Pair(Point("post", "encoder.layers.1"), Point("pre", "encoder.layers.2.ffn"))
    assert str(pair) == "[post]encoder.layers.1:[pre]encoder.layers.2.ffn"


@pytest.mark.parametrize(
    "written", ["a:b", "[post]a", "[post]a:b", "[mid]a:[post]b", "[post]a:[post]b:[post]c", "[post]:[pre]"]
)
def test_what_is_no_pair_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="module"):
        Pair.read(written)


def test_the_width_of_a_point_is_its_sides() -> None:
    config = tiny_config()
    assert Point("pre", "encoder.layers.0.ffn.ffn.w_out").width(config) == 40
    assert Point("post", "encoder.layers.0.ffn.ffn.w_out").width(config) == 24
    with pytest.raises(KeyError):
        Point("post", "encoder.layers.9").width(config)


def test_names_need_no_torch() -> None:
    code = "import sys, sprunec.families.states; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
