"""Another package adds a pass, an export format and a criterion: each in one file, with a schema where it has options.

The package lies in a folder on the path, with what an installer would note of it, and a run knows all three.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.small_plans import EMIT, TRAIN, mask_pass, plan, write

PASS = """
from __future__ import annotations

from dataclasses import dataclass

from sprunec.graph.options import Options
from sprunec.plan.declared import Pass


@dataclass(frozen=True, kw_only=True)
class CountOptions(Options):
    above: float


def lower(build, spec):
    build.add("count-large", build.options(CountOptions, spec), {"model": build.model}, about="how many are large")


def run(job):
    from sprunec.families.model_directory import open_model_tensors

    tensors = open_model_tensors(job.inputs["model"])
    large = sum(int((tensor.abs() > job.options.above).sum()) for tensor in tensors.values())
    (job.out / "large.txt").write_text(str(large))
    return {"large": large}


def report(document, node, metrics):
    document["large"] = metrics["large"]


COUNT = Pass("count-large", 1, CountOptions, ("model",), "count", lower=lower, report=report)
"""
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "count-large",
    "description": "Count weights.",
    "type": "object",
    "properties": {
        "pass": {"description": "the kind of pass", "const": "count-large"},
        "above": {"description": "what a large one is above", "type": "number", "default": 0.5, "examples": [0.5]},
    },
    "additionalProperties": False,
}
FORMAT = """
from __future__ import annotations

from sprunec.plan.export_formats import Format, Reopened


def write(emission, directory):
    from sprunec.families.model_directory import open_model_tensors, read_kept, save_model

    save_model(directory, emission.config, read_kept(emission.model), dict(open_model_tensors(emission.model)))
    return {"says": "plain"}


def reopen(directory, config, weights):
    import torch

    from sprunec.models.loading import load_model
    from sprunec.models.streamed import in_use

    model = load_model(directory)

    @torch.no_grad()
    def logits(inputs):
        return torch.cat([model(**batch)[0][in_use(batch)] for batch in inputs])

    return Reopened(torch.float32, torch.float32, logits)


PLAIN = Format("plain", write, reopen)
"""
CRITERION = """
from __future__ import annotations

from sprunec.plan.declared import Criterion


def score(given):
    import torch

    return {key: torch.arange(float(size)) for key, size in given.sizes.items()}


LAST = Criterion("last", score, "weights")
"""
ENTRY_POINTS = """
[sprunec.passes]
count-large = added.counting

[sprunec.formats]
plain = added.plain

[sprunec.masks.criteria]
last = added.last
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that an installed package lies in."""
    folder = tmp_path_factory.mktemp("site")
    files = {"__init__.py": "", "counting.py": PASS, "plain.py": FORMAT, "last.py": CRITERION}
    about = {"METADATA": "Metadata-Version: 2.1\nName: added\nVersion: 1.0\n", "entry_points.txt": ENTRY_POINTS}
    for name, texts in (("added", files), ("added-1.0.dist-info", about)):
        (folder / name).mkdir()
        for file, text in texts.items():
            (folder / name / file).write_text(text)
    (folder / "added" / "counting.schema.json").write_text(json.dumps(SCHEMA))
    return folder


def sprunec(package: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sprunec", *map(str, arguments), "--json"]
    paths = os.pathsep.join([str(package), str(Path(__file__).parents[2])])
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False)


def test_a_plan_runs_with_a_pass_a_format_and_a_criterion_of_another_package(package: Path, tmp_path: Path) -> None:
    heads = {"pass": "score-mask", "unit": "head", "target": {"num_heads": 3}, "budget": "per-layer"}
    heads |= {"criterion": "last"}
    path = write(tmp_path, plan(TRAIN, heads, {"pass": "count-large", "above": 0.25}, EMIT | {"formats": ["plain"]}))
    done = sprunec(package, "run", path, "--out", tmp_path / "out", "--quiet")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["kept"]["attention"]["0"] == [5, 6, 7]
    assert report["large"] > 0
    assert report["formats"]["plain"]["max_abs_difference"] <= report["formats"]["plain"]["tolerance"]
    assert (tmp_path / "out" / "model" / "plain" / "model.safetensors").is_file()


def test_options_of_an_added_pass_are_checked_against_its_schema(package: Path, tmp_path: Path) -> None:
    path = write(tmp_path, plan(TRAIN, {"pass": "count-large", "above": "much"}, mask_pass("head", {"num_heads": 3})))
    found = json.loads(sprunec(package, "validate", path).stdout)
    assert [each["pointer"] for each in found["diagnostics"] if each["severity"] == "error"] == ["/passes/1/above"]
    elsewhere = json.loads(sprunec(tmp_path, "validate", path).stdout)
    assert [each["pointer"] for each in elsewhere["diagnostics"]][:1] == ["/passes/1/pass"]
