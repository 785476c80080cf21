"""Whatever is done to a plan, checking it gives a plan or findings and never a traceback."""

from __future__ import annotations

import json
import random
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from sprunec.errors import Diagnostic
from sprunec.plan.plan import check_plan

GOOD = sorted((Path(__file__).parents[1] / "plans" / "good").glob("*.json"))
TEXTS = ["", "head", "4", "a\u0000b", "x" * 5000]
ODD: list[Any] = [None, True, -1, 0, 1.5, 2, 10**18, 1e300, *TEXTS, [], [[]], {}, {"num_heads": 1}]


def spots(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a document."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [spot for key in keys for spot in spots(value[key])]


def mutate_value(document: Any, draw: random.Random) -> None:
    container, key = draw.choice(spots(document))
    change = draw.randrange(4)
    if change == 0:
        del container[key]
    elif change == 1 and isinstance(container, dict):
        container[key + draw.choice(["s", "_", "/~"])] = container.pop(key)
    elif change == 2:
        container[key] = deepcopy(draw.choice([inner[step] for inner, step in spots(document)]))
    else:
        container[key] = deepcopy(draw.choice(ODD))


def mutate_text(text: str, draw: random.Random) -> str:
    at = draw.randrange(len(text))
    end = min(len(text), at + draw.randrange(4))
    return text[:at] + draw.choice(["", '"', "{", "}", "]", ",", "\\", "\x00", "é", "NaN", "-", "9" * 400]) + text[end:]


def check(folder: Path, text: str) -> None:
    for name in ("model.json", "weights.bin", "text.txt"):
        shutil.copy(GOOD[0].parents[1] / name, folder)
    path = folder / "good" / "plan.json"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    plan, found = check_plan(path)
    assert all(isinstance(finding, Diagnostic) and finding.message for finding in found)
    assert (plan is None) == any(finding.severity == "error" for finding in found)
    assert len({(f.pointer, f.message, f.line, f.column) for f in found}) == len(found)


@pytest.mark.parametrize("seed", range(100))
def test_changed_values_never_raise(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    document = json.loads(draw.choice(GOOD).read_text(encoding="utf-8"))
    for _ in range(draw.randrange(1, 4)):
        mutate_value(document, draw)
        if not spots(document):
            break
    check(tmp_path, json.dumps(document, indent=1))


@pytest.mark.parametrize("seed", range(100))
def test_changed_text_never_raises(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    text = draw.choice(GOOD).read_text(encoding="utf-8")
    for _ in range(draw.randrange(1, 4)):
        text = mutate_text(text, draw)
    check(tmp_path, text)


@pytest.mark.parametrize("seed", range(50))
def test_changed_configs_never_raise(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    config = json.loads(GOOD[1].read_text(encoding="utf-8"))["model"]["config"]
    for _ in range(draw.randrange(1, 4)):
        mutate_value(config, draw)
    (tmp_path / "config.json").write_text(json.dumps(config))
    for model in ("config.json", config):
        plan = {"name": "x", "model": {"config": model}, "passes": [{"pass": "emit"}]}
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        result, found = check_plan(tmp_path / "plan.json")
        assert (result is None) == any(finding.severity == "error" for finding in found)
