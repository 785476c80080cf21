"""What scoring and refitting a layer is said to take, against what it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sprunec.graph.least_squares_cost import (
    FLOAT,
    moment_operations,
    refit_bytes,
    refit_operations,
    removal_bytes,
    removal_operations,
)

ROOT = Path(__file__).parents[2]
FEATURES, OUTPUTS, KEPT = 5120, 1024, 4096
# The peak of a process's memory never falls, so that each work has a process of its own, in which its libraries have
# done a small one before.
WORK = f"""
from pathlib import Path
import torch
from sprunec.masks.least_squares import refit, removal_errors
peak = lambda: int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]) * 1024
def work(moment, weight, kept):
    {{work}}
moment = lambda width: torch.full((width, width), 0.1).fill_diagonal_(1.0)
work(moment(1500), torch.ones(500, 1500), torch.arange(1200))
given = moment({FEATURES}), torch.ones({OUTPUTS}, {FEATURES})
before = peak()
work(*given, torch.arange({KEPT}))
print(peak() - before)
"""


@pytest.mark.parametrize(
    ("work", "told"),
    [
        ("removal_errors(moment, weight, torch.arange(len(moment))[:, None])", removal_bytes(FEATURES, OUTPUTS)),
        ("refit(moment, weight, kept, ridge=0.1)", refit_bytes(FEATURES, KEPT, OUTPUTS)),
    ],
    ids=["removal", "refit"],
)
def test_the_peak_of_memory_is_the_one_told(work: str, told: int) -> None:
    """Buffers for products come on top; one more matrix does not."""
    command = [sys.executable, "-c", WORK.replace("{work}", work)]
    peak = int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert 0.9 * told < peak < told + 0.75 * FLOAT * FEATURES**2


def test_operations_of_a_layer_of_llama_3_8b() -> None:
    """In units of 10¹², by hand."""
    assert moment_operations(14336, 2048) / 1e12 == pytest.approx(0.42, abs=0.01)
    assert removal_operations(14336, 4096) / 1e12 == pytest.approx(3.93 + 0.84, abs=0.01)
    assert refit_operations(14336, 11008, 4096) / 1e12 == pytest.approx(0.44 + 0.99 + 0.30, abs=0.01)
    assert removal_bytes(14336, 4096) / 1e9 == pytest.approx(1.06, abs=0.01)
    assert refit_bytes(14336, 11008, 4096) / 1e9 == pytest.approx(0.97 + 0.36 + 0.36, abs=0.01)
