"""The page about mask files: its examples are read, and every form and option is on it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sprunec.mask_files import flap, layer_lists, zs
from sprunec.mask_files.forms import FORMS
from sprunec.mask_files.reading import read_masks
from sprunec.plan.schema import properties
from sprunec.units import INSIDE, UNITS, Kept

PAGE = (Path(__file__).parents[2] / "docs/masks.md").read_text()
EXAMPLES = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
HEADS, DIMS = (0, 1, 2, 3), tuple(range(8))
KEPT_HEADS = [[(0, 2), HEADS], [(0, 2), HEADS], [(0, 2), HEADS]]


@pytest.mark.parametrize(("example", "kept"), zip(EXAMPLES, KEPT_HEADS, strict=True))
def test_examples_are_read(example: str, kept: list[tuple[int, ...]], tmp_path: Path) -> None:
    whole = Kept([{"head": HEADS, "dim_head": (0,), "dim_ff": DIMS}] * 2)
    (tmp_path / "m.json").write_text(json.dumps(json.loads(example)))
    assert [layer["head"] for layer in read_masks([tmp_path / "m.json"], whole).kept] == kept


def test_every_form_name_and_option_is_told() -> None:
    names = {*zs.UNITS_OF, *zs.NEVER_CUT, *flap.UNITS_OF, *layer_lists.SAYS, "pruned_heads", "mask_modules"}
    names |= {UNITS[unit].field for unit in INSIDE}
    assert {name for name in names if f"`{name}`" not in PAGE} == set()
    assert {name for name in ("lists", "lists_of", "threshold") if f'"{name}"' not in PAGE} == set()
    assert {"threshold", "lists", "lists_of"} <= properties("passes/load-mask").keys()
    assert len(FORMS) == len([line for line in PAGE.split("\n\n|")[1].splitlines() if line.startswith("| ")])
