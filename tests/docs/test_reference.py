"""docs/plan.md says what the schemas say, docs/families.md what the cards say."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_reference_is_what_the_schemas_make() -> None:
    made = runpy.run_path(str(DOCS / "make_reference.py"))["reference"]()
    assert (DOCS / "plan.md").read_text(encoding="utf-8") == made, "run python docs/make_reference.py"


def test_the_reference_names_every_option() -> None:
    text = (DOCS / "plan.md").read_text(encoding="utf-8")
    for key in ("mask_learning_rate", "checkpoint_every", "criterion", "held_out", "precision", "divisors"):
        assert f"| `{key}` |" in text
    assert '| `schedule` | the learning rate\'s course after the warm-up | `"cosine"`, `"noam"`' in text


def test_the_families_are_those_of_the_cards() -> None:
    made = runpy.run_path(str(DOCS / "make_families.py"))["families"]()
    assert (DOCS / "families.md").read_text(encoding="utf-8") == made, "run python docs/make_families.py"
