"""What scoring and refitting a layer is said to hold, against what it holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sprunec.graph.arithmetic import Text, solved
from sprunec.graph.choice_needs import Measuring, moments_of_choices
from sprunec.graph.needs import EXACT, SINGLE, Needs

ROOT = Path(__file__).parents[2]
FEATURES, OUTPUTS = 4096, 1024
# The peak of a process's memory never falls, so that each work has a process of its own, in which its libraries have
# done a small one before. What it is given counts.
WORK = f"""
from pathlib import Path
import torch
from sprunec.masks.least_squares import choose_ridge, refit, removal_errors
from sprunec.masks.search.ordered_factor import OrderedFactor
from sprunec.masks.symmetric import SecondMoment
peak = lambda: int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0]) * 1024
def work(moment, weight, kept):
    {{work}}
def summed(width):
    found = SecondMoment(width)
    found.add(torch.ones(1, width))
    return found
def whole(width):
    return torch.full((width, width), 0.1).fill_diagonal_(1.0)
moment = {{moment}}
work(moment(1500), torch.ones(500, 1500), torch.arange(1200))
before = peak()
work(moment({FEATURES}), torch.ones({OUTPUTS}, {FEATURES}), torch.arange({FEATURES} - 64))
print(peak() - before)
"""


@pytest.mark.parametrize(
    ("work", "moment", "kind", "rows"),
    [
        ("removal_errors(moment, weight, torch.arange(len(moment))[:, None])", "whole", SINGLE, 0),
        ("refit(moment, weight, kept, ridge=0.1)", "summed", EXACT, 0),
        ("choose_ridge(moment, [torch.ones(2000, moment.width)], weight, kept)", "summed", EXACT, 2000),
    ],
    ids=["removal", "refit", "choice"],
)
def test_the_peak_of_memory_is_the_one_told(work: str, moment: str, kind: str, rows: int) -> None:
    """Were there one more matrix, it would be above."""
    model: Any = SimpleNamespace(config=SimpleNamespace(width=OUTPUTS, layers=[None]))
    unseen, nothing = Text(1, rows), Needs({}, operations={SINGLE: 0.0})
    told = solved(nothing, model, Text(1, 1), [FEATURES], kind, unseen).memory["moments"]
    matrix = FEATURES**2 * (4 if kind == SINGLE else 8)  # libraries take less than one by chance
    assert 0.75 * told < peak_of(work, moment) < told + matrix


def test_the_peak_of_choices_is_the_one_told() -> None:
    """Were there one more half of a matrix, it would be above."""
    model: Any = SimpleNamespace(config=SimpleNamespace(width=OUTPUTS, layers=[]))
    how = Measuring(Text(1, 1), Text(1, 256), [], ["dim_ff"], [], samples=1, batch=1)
    told = max(moments_of_choices(model, how, [FEATURES], 256))
    work = "moment.round(); OrderedFactor(moment, torch.arange(moment.width).flip(0), 0.1)"
    assert 0.75 * told < peak_of(work, "summed") < told + FEATURES**2 * 8 // 2


def peak_of(work: str, moment: str) -> int:
    command = [sys.executable, "-c", WORK.replace("{work}", work).replace("{moment}", moment)]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # each thread of the library has buffers of its own
    return int(subprocess.run(command, cwd=ROOT, env=alone, stdout=subprocess.PIPE, text=True, check=True).stdout)
