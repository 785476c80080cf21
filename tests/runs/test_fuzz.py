"""Thousands of changed files through the commands: a result or one message that names the file, and never a traceback.

The long form is marked slow: 2,000 cases in all, in 5 kinds.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sprunec.checkpoint.writer import write_state
from tests.conftest import tiny_model
from tests.helpers.live_sets import some_records, write_v1
from tests.helpers.mutants import changed, changed_bytes, changed_text, ends
from tests.helpers.small_plans import TINY

GOOD = sorted((Path(__file__).parents[1] / "plans" / "good").glob("*.json"))
CASES = {"plans": (80, 600), "configs": (40, 400), "headers": (60, 500), "masks": (8, 250), "blocks": (8, 250)}
MEGABYTES = 400
Case = Callable[[Path, random.Random], tuple[list[str], set[str]]]


def plans(folder: Path, draw: random.Random) -> tuple[list[str], set[str]]:
    """A plan among the files that it names -> a command, and the files that a message may be about."""
    text = draw.choice(GOOD).read_text(encoding="utf-8")
    text = changed_text(text, draw) if draw.random() < 0.5 else json.dumps(changed(json.loads(text), draw), indent=1)
    (folder / "good" / "plan.json").write_text(text, encoding="utf-8")
    return ["validate", str(folder / "good" / "plan.json")], {"plan.json"}


def configs(folder: Path, draw: random.Random) -> tuple[list[str], set[str]]:
    text = json.dumps(changed(TINY | {"num_layers": 2}, draw))
    (folder / "config.json").write_text(text if draw.random() < 0.7 else changed_text(text, draw))
    return ["inspect", str(folder / "config.json")], {"config.json"}


def headers(folder: Path, draw: random.Random) -> tuple[list[str], set[str]]:
    content = (folder / "whole" / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(changed(json.loads(content[8 : 8 + length]), draw)).encode()
    size = len(header) if draw.random() < 0.8 else draw.choice([0, 2**31, 2**63, draw.randrange(2**16)])
    data = size.to_bytes(8, "little") + header + content[8 + length :]
    (folder / "a.safetensors").write_bytes(data if draw.random() < 0.5 else changed_bytes(content, draw))
    return ["inspect", str(folder / "a.safetensors")], {"a.safetensors"}


def masks(folder: Path, draw: random.Random) -> tuple[list[str], set[str]]:
    (folder / "heads.pt").write_bytes(changed_bytes((folder / "whole" / "heads.pt").read_bytes(), draw))
    return run(folder, {"pass": "load-mask", "path": "heads.pt"}), {"heads.pt"}


def blocks(folder: Path, draw: random.Random) -> tuple[list[str], set[str]]:
    name = draw.choice(["meta.bin", "data_0"])
    shutil.rmtree(folder / "set", ignore_errors=True)
    shutil.copytree(folder / "whole" / "set", folder / "set")
    (folder / "set" / name).write_bytes(changed_bytes((folder / "set" / name).read_bytes(), draw))
    return run(folder, {"pass": "train", "steps": 1}), {"set", "meta.bin", "data_0"}


def run(folder: Path, one: dict[str, object]) -> list[str]:
    """A whole run of a plan of one pass, from nothing."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    data = {"source": "cpm-live", "path": "set", "block_size": 512, "max_length": 40, "batch_size": 2, "held_out": 0.2}
    model = {"config": TINY, "checkpoint": "whole/model.safetensors"}
    plan = {"name": "fuzzed", "model": model, "data": data if one["pass"] == "train" else None, "passes": [one]}
    text = json.dumps({key: value for key, value in plan.items() if value is not None})
    (folder / "plan.json").write_text(text)
    return ["run", str(folder / "plan.json"), "--out", str(folder / "out")]


KINDS: dict[str, Case] = {"plans": plans, "configs": configs, "headers": headers, "masks": masks, "blocks": blocks}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The good files that the cases are made of."""
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(GOOD[0].parents[1], folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("bad", "set"))
    (folder / "whole").mkdir()
    write_state(tiny_model().state_dict(), folder / "whole")
    torch.save({"heads_z": (torch.arange(12).view(3, 4) % 3 > 0).int()}, folder / "whole" / "heads.pt")
    write_v1(folder / "whole" / "set", {"data_0": some_records(30, longest=20)}, 512)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("long", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["short", "long"])
def test_changed_files_end_in_a_result_or_a_message(
    kind: str, long: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted, codes = CASES[kind][long], Counter[int]()
    how = settings(
        max_examples=wanted, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )

    @how
    @given(st.integers(0, 2**63))
    def one(seed: int) -> None:
        arguments, files = KINDS[kind](folder, random.Random(seed))
        codes[ends(arguments, files, capsys)] += 1

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    one()
    assert sum(codes.values()) >= wanted and codes[3] + codes[1] > wanted // 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024 - before < MEGABYTES


@pytest.mark.parametrize("kind", ["masks", "blocks"])
def test_unchanged_files_give_a_result(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(f"{__name__}.changed_bytes", lambda content, draw: content)
    arguments, files = KINDS[kind](folder, random.Random(0))
    assert ends(arguments, files, capsys) == 0


def test_the_long_form_has_two_thousand_cases_of_every_kind() -> None:
    assert sum(long for _, long in CASES.values()) >= 2000 and min(long for _, long in CASES.values()) >= 250
