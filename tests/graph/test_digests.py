"""The digests of known plans stay what they were: a change of any throws away what users have stored.

`digests.json` has, for each node of each plan, a hash over pass, version and options, with digests of files taken out
(they depend on torch's release and on Python's). A pass that must change raises its version, and its line here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sprunec.compiler.lower import lower
from sprunec.graph.graph import digest_of, plain
from sprunec.plan.bmcook_flags import NO_FLAGS, Flags
from sprunec.plan.declared import PASSES
from sprunec.plan.plan import check_plan
from tests.helpers.bmcook_files import COARSE, FINE, bmcook, write
from tests.helpers.guide import prepare

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("digests.json")
CONTENT = re.compile(r"\"[0-9a-f]{64}\"|\"missing file\"")
FLAGS = Flags(model_config="model.json", load="dense.pt", data_bin_path="data", train_iters=3, batch_size=4)
STAGES = {  # the guide's: layers, heads, recovery, dims, the actual prune
    "layers": ({"coarse-grained": COARSE}, 3),
    "heads": ({"fine-grained": FINE}, 3),
    "recovery": ({"fine-grained": FINE | {"train_mask": False}}, 3),
    "dims": ({"fine-grained": FINE | {"prune_mode": "ffn"}}, 3),
    "prune": ({"fine-grained": FINE | {"train_mask": False}}, 0),
}
PLANS = [*sorted((ROOT / "plans").glob("*-to-*.json")), ROOT / "plans/quickstart.json"]
PLANS += sorted((ROOT / "tests/plans/good").glob("*.json"))


def nodes_of(path: Path, flags: Flags = NO_FLAGS) -> dict[str, Any]:
    """The nodes of a plan's graph, by name: their inputs, and a hash that no file and no release decides."""
    plan, found = check_plan(path, flags=flags)
    assert plan is not None, found
    return {node.name: [dict(node.inputs), stable(node.pass_, node.options.document())] for node in lower(plan).nodes}


def stable(pass_: str, options: Mapping[str, Any]) -> str:
    text = json.dumps({"version": PASSES[pass_].version, "options": plain(options)}, sort_keys=True)
    return hashlib.sha256(CONTENT.sub('"file"', text).encode()).hexdigest()[:16]


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_nodes_of_a_shipped_plan_keep_their_digests(path: Path) -> None:
    assert nodes_of(path) == json.loads(GOLDEN.read_text())[path.stem]


@pytest.mark.parametrize("stage", STAGES)
def test_nodes_of_a_bmcook_stage_keep_their_digests(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    options, steps = STAGES[stage]
    write(tmp_path, "l0_pruning.json", options)
    path = write(tmp_path, "bmcook.json", bmcook(next(iter(options))))
    flags = Flags(**vars(FLAGS) | {"train_iters": steps})
    assert nodes_of(path, flags) == json.loads(GOLDEN.read_text())[f"stage {stage}"]


def test_a_digest_is_over_pass_version_options_and_inputs() -> None:
    known = digest_of("train", 3, {"steps": 2}, {"model": "a"})
    text = '{"inputs": {"model": "a"}, "options": {"steps": 2}, "pass": "train", "version": 3}'
    assert known == hashlib.sha256(text.encode()).hexdigest()
