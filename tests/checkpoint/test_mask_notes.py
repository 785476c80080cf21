"""The note beside a mask file: what it says, when it holds, and whom it warns."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from sprunec.checkpoint.provenance import note_path, note_weights, read_provenance, weights_warning, write_provenance

ENTERED = "c" * 64
ABOUT = {"unit": ("head",), "target": {"num_heads": 3}, "checkpoint": ENTERED, "start_step": 5, "steps": 8}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    path = tmp_path / "masks" / "heads.pt"
    path.parent.mkdir()
    path.write_bytes(b"a mask")
    return path


def test_the_note_says_what_made_the_mask_and_then_which_weights_learned_with_it(mask: Path, tmp_path: Path) -> None:
    write_provenance(mask, ABOUT)
    note = json.loads((mask.parent / "heads.pt.json").read_text())
    assert {key: note[key] for key in ABOUT} == ABOUT | {"unit": ["head"]}
    assert (note["weights"], note["mask"]) == (None, sha256(mask))
    weights = tmp_path / "out" / "full.pt"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    note_weights(mask, weights)
    assert read_provenance(mask) == note | {"weights": sha256(weights), "weights_file": "../out/full.pt"}


def test_the_same_note_is_left_alone_and_keeps_its_weights(mask: Path) -> None:
    write_provenance(mask, ABOUT)
    note_weights(mask, mask)
    os.utime(note_path(mask), ns=(1, 1))
    write_provenance(mask, ABOUT)
    assert note_path(mask).stat().st_mtime_ns == 1
    write_provenance(mask, ABOUT | {"steps": 9})
    assert json.loads(note_path(mask).read_text())["weights"] is None


@pytest.mark.parametrize("text", [None, "", "[]", "{", '{"mask": 3}', "[" * 100_000])
def test_a_note_that_is_none_or_about_another_mask_says_nothing(text: str | None, mask: Path) -> None:
    write_provenance(mask, ABOUT)
    assert weights_warning(mask, ENTERED)
    if text is None:
        mask.write_bytes(b"another mask")
    else:
        note_path(mask).write_text(text)
    assert read_provenance(mask) is None
    assert weights_warning(mask, ENTERED) is None
    note_weights(mask, mask)  # nothing to add to, nothing done


@pytest.mark.parametrize(
    ("about", "checkpoint"),
    [({}, "d" * 64), ({}, None), ({"steps": 5}, ENTERED), ({"checkpoint": None}, None)],
    ids=["other weights", "new weights", "nothing was trained", "both new"],
)
def test_only_the_weights_from_before_the_training_warn(about: dict[str, Any], checkpoint: Any, mask: Path) -> None:
    write_provenance(mask, ABOUT | about)
    assert weights_warning(mask, checkpoint) is None


def test_the_warning_names_the_weights_that_belong_to_the_mask(mask: Path, tmp_path: Path) -> None:
    write_provenance(mask, ABOUT)
    note_weights(mask, mask)
    warning = weights_warning(mask, ENTERED)
    assert warning is not None
    assert warning.startswith(f"heads.pt: masks learned together with other weights: {mask} holds them; ")
    assert warning.endswith("this run starts from the weights from before")
