"""What is said of the bytes that keys and values take is what the class's own cache holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sprunec.compiler.inspect import inspect_model
from sprunec.compiler.lower import lower
from sprunec.families.cards import card_of, native
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.plan.plan import read_plan
from sprunec.plan.schema import validator
from tests.helpers.causal_lms import CONFIGS, causal_lm, token_ids
from tests.helpers.small_plans import MODEL, plan, write

CUT = {"pass": "score-mask", "criterion": "magnitude", "unit": "kv_group", "target": {"num_kv_groups": 1}}


def cached_bytes(model: Any, tokens: int = 7) -> float:
    output = model(input_ids=token_ids(1, tokens), use_cache=True)
    cache = next(output[key] for key in ("cache", "past_key_values") if key in output)
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) / tokens


def config_of(directory: Path) -> TransformersConfig:
    return TransformersConfig.from_dict(native(json.loads((directory / "config.json").read_text())))


@pytest.mark.parametrize("name", CONFIGS)
def test_what_each_family_caches_is_known_from_its_config(name: str, tmp_path: Path) -> None:
    model = causal_lm(name)
    model.save_pretrained(tmp_path)
    config = config_of(tmp_path)
    assert card_of(config).cache_bytes(config) == cached_bytes(model)


def test_the_stored_type_decides(tmp_path: Path) -> None:
    model = causal_lm("qwen3").bfloat16()
    model.save_pretrained(tmp_path)
    assert inspect_model(tmp_path)["cache_bytes_per_token"] == cached_bytes(model) == 2 * 2 * 2 * 2 * 10


def test_layers_without_attention_cache_nothing(tmp_path: Path) -> None:
    causal_lm("qwen3").save_pretrained(tmp_path)
    config = config_of(tmp_path)
    left = config.with_layers([config.layers[0].resized({"kv_group": 1}), config.layers[1].resized({"head": 0})])
    assert (card_of(config).cache_bytes(config), card_of(config).cache_bytes(left)) == (320, 80)


def test_a_window_bounds_what_a_layer_caches(tmp_path: Path) -> None:
    """Between two tokens a class keeps one position less than the window, which the next token fills."""
    model = causal_lm("gemma3_text", layer_types=["sliding_attention", "full_attention"])
    model.save_pretrained(tmp_path)
    config, each = config_of(tmp_path), 2 * 2 * 10 * 4  # keys and values of two groups of ten dims, in float32
    held = card_of(config).cache_bytes(config, 20)
    assert held == (8 + 20) * each == round(cached_bytes(model, 20) * 20) + each


def test_the_graph_says_it_before_and_after(tmp_path: Path) -> None:
    causal_lm("qwen3").save_pretrained(tmp_path / "dense")
    content = plan(CUT, {"pass": "emit", "formats": ["huggingface"]}, model={"path": "dense"})
    document = lower(read_plan(write(tmp_path, content))).document({}) | {"training": [], "measured": None}
    assert document["cache_bytes_per_token"] == {"before": 320, "after": 160}
    assert [error.message for error in validator("graph").iter_errors(document)] == []
    heads = {"pass": "train-mask", "unit": "head", "target": {"num_heads": 2}, "steps": 1}
    of_ant = lower(read_plan(write(tmp_path, plan({"pass": "train", "steps": 1}, heads)))).document({})
    before = MODEL["num_layers"] * 2 * MODEL["num_heads"] * MODEL["dim_head"] * torch.float16.itemsize
    assert of_ant["cache_bytes_per_token"] == {"before": before, "after": before // 4}
