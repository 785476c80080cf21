"""Decoding is compared in float64: in float32 a token with large activations is far off by rounding alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sprunec.families.base import family_of
from sprunec.models.comparison import compare
from sprunec.models.decoding import Decoding
from sprunec.models.meta_models import empty_model
from tests.families.huggingface.test_cut_models import saved
from tests.helpers.causal_lms import token_ids


def compared(name: str, folder: Path, **changes: Any) -> dict[str, Any]:
    """A model beside itself."""
    _, config, tensors = saved(name, folder, **changes)
    ids = token_ids(2, 19)
    inputs = {"input": ids, "length": torch.full((2,), 19)}
    models = [(empty_model(config), tensors) for _ in range(2)]
    return compare(family_of(config), models, [inputs], torch.device("cpu"))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "gpt_neox"])
def test_a_model_decodes_as_it_runs_far_below_what_float32_rounds(name: str, tmp_path: Path) -> None:
    found = compared(name, tmp_path)
    assert found["float32_difference"] == 0.0  # the same model, without decoding
    assert 0.0 < found["max_abs_difference"] < 1e-9 < found["tolerance"]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_a_cache_that_is_a_little_wrong_is_above_the_limit(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So little may be lost among what float32 rounds."""
    both = Decoding.both

    def wrong(self: Decoding) -> tuple[Tensor, Tensor]:
        steps, whole = both(self)
        return steps + 1e-5 * steps.roll(1, -1), whole

    monkeypatch.setattr(Decoding, "both", wrong)
    found = compared(name, tmp_path)
    assert found["max_abs_difference"] > found["tolerance"]
