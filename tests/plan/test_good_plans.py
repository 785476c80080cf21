"""What a plan says, and what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from sprunec.families.cpm_ant.config import LayerShape
from sprunec.plan.declared import PassSpec
from sprunec.plan.plan import DataSource, Engine, Plan, check_plan, read_plan

ROOT = Path(__file__).parents[2]
GOOD = ROOT / "tests" / "plans" / "good"
PLANS = [path for path in (*GOOD.glob("*.json"), *ROOT.glob("plans/*.json")) if '"passes"' in path.read_text()]


def plain(value: Any) -> Any:
    if isinstance(value, MappingProxyType):
        return {key: plain(item) for key, item in value.items()}
    return value


def options(plan: Plan, index: int) -> Any:
    return plain(plan.passes[index].options)


@pytest.mark.usefixtures("cached_configs")
@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_plan_has_no_errors(path: Path) -> None:
    plan, found = check_plan(path)
    assert [str(finding) for finding in found if finding.code not in ("missing-file", "high-rate")] == []
    assert plan is not None
    assert plan.name == path.stem


def test_training_options_flow_from_schema_to_plan_to_pass() -> None:
    plan = read_plan(GOOD / "counts.json")
    shared = {"weight_decay": 0.01, "clip_grad": 1.0, "accumulate": 1, "loss_scale": 65536.0}
    shared |= {"optimizer": "adamw", "betas": (0.9, 0.999), "checkpoint_every": 200, "distillation": None}
    shared |= {"freeze": (), "adapter": None}
    assert options(plan, 0) == shared | {"steps": 200, "learning_rate": 1.0, "schedule": "linear", "warmup_steps": 10}
    assert options(plan, 2) == shared | {"steps": 50, "learning_rate": 0.001, "schedule": "constant", "warmup_steps": 5}
    assert options(plan, 4) == {"formats": ("sprunec",), "dtype": "keep"}


def test_adapters_learn_ten_times_as_fast_where_no_rate_is_given(tmp_path: Path) -> None:
    lora, steps = {"adapter": {"kind": "lora"}}, {"pass": "train", "steps": 9}
    passes = [steps, steps | lora, steps | lora | {"learning_rate": 0.3}]
    content = json.loads((GOOD / "counts.json").read_text()) | {"passes": passes}
    content["model"] = {"config": str(GOOD.parent / "model.json")}
    rates = []
    for training in ({}, {"learning_rate": 0.2}):
        (tmp_path / "plan.json").write_text(json.dumps(content | {"training": training}))
        plan = read_plan(tmp_path / "plan.json")
        rates.append([options(plan, index)["learning_rate"] for index in range(3)])
    assert rates == [pytest.approx([0.01, 0.1, 0.3]), [0.2, 0.2, 0.3]]


def test_numbers_take_the_type_of_their_schema() -> None:
    plan = read_plan(GOOD / "counts.json")
    assert type(plan.passes[0].options["learning_rate"]) is float
    assert type(plan.passes[2].options["steps"]) is int


def test_mask_options_are_written_in_one_way() -> None:
    plan = read_plan(GOOD / "counts.json")
    assert options(plan, 1)["unit"] == ("head",)
    assert options(plan, 1)["budget"] == "per-layer"
    assert (options(plan, 1)["mask_learning_rate"], options(plan, 1)["ramp"]) == (0.3, 0.5)
    assert options(plan, 3)["unit"] == ("dim_ff", "dim_head")
    assert options(plan, 3)["budget"] == "global"
    assert options(plan, 3)["target"] == {"dim_head": 3, "dim_ff": 20}


def test_score_masks_without_training() -> None:
    plan = read_plan(GOOD / "sizes.json")
    assert options(plan, 0) == {
        "criterion": "taylor",
        "batches": None,
        "unit": ("layer",),
        "target": {"num_attention": 2, "num_feed_forward": 2},
        "budget": "global",
        "mask_form": "bmcook",
        "tie_heads": False,
        "multiple_of": {},
        "compensate": None,
        "ridge": None,
    }
    assert options(plan, 1)["budget"] == "global"
    assert options(plan, 2)["target"] == {"parameters": 12500}


def test_sections_are_resolved() -> None:
    plan = read_plan(GOOD / "sizes.json")
    text = GOOD / "../text.txt"
    of_sets = {"vocab": None, "block_size": 1 << 24, "order": "shuffled", "packed_prompts": "text-table"}
    assert plan.data == DataSource("text", (text,), "characters", text, 64, 32, **of_sets)
    assert plan.engine == Engine("torch", "cuda:1", "fp16")
    assert (plan.seed, plan.evaluate, plan.evaluate_tokens) == (7, True, 1000)
    assert plan.model.checkpoint == GOOD / "../weights.bin"
    assert plan.file == GOOD / "sizes.json"


def test_a_data_set_is_named_by_its_directory() -> None:
    data = read_plan(GOOD / "data-set.json").data
    assert data is not None
    assert (data.source, data.paths, data.vocab) == ("cpm-live", (GOOD / "../set",), GOOD / "../vocab.txt")
    assert (data.block_size, data.order, data.packed_prompts) == (512, "stored", "prompt-table")


def test_a_vocabulary_file_is_a_path_beside_the_plan() -> None:
    data = read_plan(GOOD / "pairs.json").data
    assert data is not None
    assert (data.tokenizer, data.held_out) == (GOOD / "../vocab.txt", GOOD / "../pairs.jsonl")


def test_defaults_of_absent_sections() -> None:
    plan = read_plan(GOOD / "cut-model.json")
    assert plan.data is None
    assert plan.model.checkpoint is None
    assert plan.engine == Engine("torch", "auto", "fp32")
    assert (plan.seed, plan.evaluate, plan.evaluate_tokens) == (1234, False, None)
    loaded = {"path": (GOOD / "../mask.json",), "compensate": None, "ridge": None, "batches": None}
    assert plan.passes[0] == PassSpec("load-mask", MappingProxyType(loaded), "/passes/0")


def test_plan_that_trains_is_evaluated() -> None:
    assert read_plan(GOOD / "counts.json").evaluate


def test_inline_config_of_a_cut_model() -> None:
    config = read_plan(GOOD / "cut-model.json").model.config
    assert config.layers == (LayerShape(2, 6, 20, (0, 3)), LayerShape(0, 0, 40), LayerShape(4, 6, 0))
    assert config.divisors.attention_out == 24


def test_plan_is_frozen() -> None:
    spec = read_plan(GOOD / "counts.json").passes[1]
    with pytest.raises(TypeError):
        spec.options["target"]["num_heads"] = 3


def test_the_guides_model_has_its_size() -> None:
    assert read_plan(ROOT / "plans" / "cpm-ant-1b-to-300m.json").model.config.parameters() == 1_149_865_984
