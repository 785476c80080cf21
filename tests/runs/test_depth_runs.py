"""Blocks that go by criteria of their own, from a plan to a small model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from sprunec.compiler.lower import lower
from sprunec.families.base_config import unit_cost
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.plan.declared import CRITERIA
from sprunec.plan.plan import read_plan
from tests.helpers.causal_lms import causal_lm
from tests.helpers.small_plans import EMIT, MODEL, artifact, execute, plan, save_weights, write

SCORE = {"pass": "score-mask", "unit": "block", "batches": 2}
LONGER = MODEL | {"num_layers": 5}
WEIGHTS = {"config": LONGER, "checkpoint": "weights.pt"}
OF_BLOCKS = [name for name, row in CRITERIA.items() if row.unit == "block"]


def kept_layers(out: Path) -> list[int]:
    kept = json.loads((artifact(out, "binarize") / "kept.json").read_text())
    return [index for index, layer in enumerate(kept) if layer["heads"]]


@pytest.mark.parametrize("criterion", OF_BLOCKS)
def test_a_plan_drops_blocks(criterion: str, tmp_path: Path) -> None:
    save_weights(tmp_path / "weights.pt", num_layers=5)
    content = plan(SCORE | {"criterion": criterion, "target": {"num_layers": 3}}, EMIT, model=WEIGHTS)
    report = execute(content, tmp_path)
    kept = kept_layers(tmp_path / "out")
    assert report["status"] == "done" and len(kept) == 3
    gone = sorted({*range(5)} - {*kept})
    assert criterion != "angular-distance" or gone == [gone[0], gone[0] + 1]


def test_a_size_drops_a_stretch_of_as_many_blocks_as_it_takes(tmp_path: Path) -> None:
    save_weights(tmp_path / "weights.pt", num_layers=5)
    config = ModelConfig.from_dict(LONGER)
    target = {"parameters": config.parameters() - 2 * unit_cost(config, 0, "block")}
    content = plan(SCORE | {"criterion": "angular-distance", "target": target}, EMIT, model=WEIGHTS)
    execute(content, tmp_path)
    gone = sorted({*range(5)} - {*kept_layers(tmp_path / "out")})
    assert gone == [gone[0], gone[0] + 1]


def test_losses_without_blocks_are_said_to_take_as_many_models(tmp_path: Path) -> None:
    save_weights(tmp_path / "weights.pt", num_layers=5)

    def needs(criterion: str) -> float:
        content = plan(SCORE | {"criterion": criterion, "target": {"num_layers": 3}}, EMIT, model=WEIGHTS)
        nodes = lower(read_plan(write(tmp_path, content))).nodes
        return next(node.needs.operations["float32"] for node in nodes if node.pass_ == "score-mask")

    influence, removal, iterative = (needs(name) for name in ("block-influence", "removal-loss", "iterative-removal"))
    assert needs("angular-distance") == influence
    assert 3 * influence < removal == iterative / 2


@pytest.mark.parametrize("criterion", OF_BLOCKS)
def test_blocks_that_are_gone_already_are_not_counted(criterion: str, tmp_path: Path) -> None:
    save_weights(tmp_path / "weights.pt", num_layers=5)
    first = SCORE | {"criterion": "magnitude", "target": {"num_layers": 4}}
    first.pop("batches")
    then = SCORE | {"criterion": criterion, "target": {"num_layers": 2}}
    assert execute(plan(first, then, EMIT, model=WEIGHTS), tmp_path)["status"] == "done"
    assert len(kept_layers(tmp_path / "out")) == 2


@pytest.mark.parametrize("criterion", ["angular-distance", "iterative-removal"])
@pytest.mark.slow
def test_blocks_of_a_library_model_go_and_its_stock_class_opens_the_rest(criterion: str, tmp_path: Path) -> None:
    causal_lm("llama", num_hidden_layers=4, vocab_size=128).save_pretrained(tmp_path / "dense")
    score = SCORE | {"criterion": criterion, "target": {"num_layers": 2}}
    content = plan(score, {"pass": "emit", "formats": ["huggingface"]}, model={"path": "dense"})
    content["data"] |= {"tokenizer": "characters"}
    assert execute(content, tmp_path)["status"] == "done"
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model/huggingface")
    assert type(small).__name__ == "LlamaForCausalLM" and small.config.num_hidden_layers == 2
