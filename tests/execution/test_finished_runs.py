"""A finished run that is given again: all is verified, and nothing is done that only work would need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sprunec.execution.events import Events
from tests.helpers.small_plans import EMIT, TRAIN, execute, mask_pass, plan, write

ROOT = Path(__file__).parents[2]
AGAIN = """
import sys
from sprunec.compiler.lower import lower
from sprunec.execution.execute import execute
from sprunec.plan.plan import read_plan
report = execute(lower(read_plan(sys.argv[1])), sys.argv[2])
print([name for name in ("torch.distributed.tensor", "transformers", "peft") if name in sys.modules])
"""
SCORE = {"pass": "score-mask", "criterion": "magnitude", "unit": "dim_ff", "target": {"dim_ff": 24}}
FINETUNE = {"pass": "finetune", "steps": 2}
PLANS: dict[str, list[dict[str, Any]]] = {
    "trained": [TRAIN, EMIT],
    "cut by scores": [TRAIN, SCORE, EMIT],
    "cut by gates, and trained again": [TRAIN, mask_pass("head", {"num_heads": 3}), FINETUNE, EMIT],
}


@pytest.mark.parametrize("passes", list(PLANS.values()), ids=list(PLANS))
def test_events_are_read_twice_at_most_and_nothing_is_imported_to_train(
    passes: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(plan(*passes), tmp_path)
    lines, read = Events._lines, list[Path]()

    def counted(self: Events) -> list[str]:
        read.append(self.path)
        return lines(self)

    monkeypatch.setattr(Events, "_lines", counted)
    before = (tmp_path / "out/events.jsonl").read_bytes() if (tmp_path / "out/events.jsonl").exists() else b""
    execute(plan(*passes), tmp_path)
    assert 1 <= len(read) <= 2
    found = subprocess.run(
        [sys.executable, "-c", AGAIN, write(tmp_path, plan(*passes)), tmp_path / "out"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.strip() == "[]"
    assert before == ((tmp_path / "out/events.jsonl").read_bytes() if before else b"")
