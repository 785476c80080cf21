"""What a job opens: the same shape is traced once in a run, whoever asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sprunec.graph.options import BatchOptions, Options
from sprunec.models import meta_models
from tests.helpers.small_plans import EMIT, TRAIN, execute, mask_pass, plan


def test_a_run_traces_a_shape_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meta_models.traced_shape.cache_clear()
    real, traced = meta_models.trace_blocks, []

    def counted(*arguments: Any) -> Any:
        traced.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(meta_models, "trace_blocks", counted)
    execute(plan(TRAIN, mask_pass("head", {"num_heads": 3}), EMIT), tmp_path)
    assert len(traced) == 1


def test_options_at_their_default_are_no_part_of_the_document() -> None:
    assert Options().document() == {}
    assert BatchOptions(seed=0).document() == {"seed": 0}
    assert BatchOptions(seed=0, max_length=3).document() == {"seed": 0, "max_length": 3}
