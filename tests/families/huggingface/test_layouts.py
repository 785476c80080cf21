"""What a card says of a family's files is what transformers writes: names, shapes, and what is tied."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from sprunec.checkpoint.reader import open_tensors
from sprunec.families.base_config import removable, unit_cost
from sprunec.families.cards import card, native
from sprunec.families.huggingface.model_types import LAYOUTS
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.units import SUBLAYERS
from tests.helpers.causal_lms import CONFIGS, EVERY, causal_lm


def saved(name: str, directory: Path, **changes: object) -> TransformersConfig:
    causal_lm(name, **changes).save_pretrained(directory)
    return TransformersConfig.from_dict(native(json.loads((directory / "config.json").read_text())))


def test_every_card_has_a_tiny_model() -> None:
    assert LAYOUTS.keys() == EVERY.keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_tensors_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    config = saved(name, tmp_path)
    assert config.tensors() == open_tensors(tmp_path).shapes()
    assert TransformersConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_of_sublayers_add_up_to_what_lies_in_blocks(name: str, tmp_path: Path) -> None:
    config = saved(name, tmp_path)
    inside = {key: shape for key, shape in config.tensors().items() if key.startswith(config.layout.blocks)}
    both = [key for key in inside if key.removeprefix(f"{config.layout.blocks}.")[2:] in config.layout.both]
    shared = sum(math.prod(inside[key]) for key in both)
    assert removable(config, SUBLAYERS) == sum(map(math.prod, inside.values())) - shared


def test_a_group_weighs_its_keys_and_values_and_the_queries_of_its_heads(tmp_path: Path) -> None:
    config = saved("qwen3", tmp_path)
    assert config.layers[0].counts == {"kv_group": 2, "head": 6, "dim_head": 10, "dim_ff": 56}
    head, group = 2 * 10 * 48, 2 * 10 * 48
    assert unit_cost(config, 0, "head") == head
    assert unit_cost(config, 0, "kv_group") == group + 3 * head
    assert unit_cost(config, 0, "dim_ff") == 3 * 48


def test_biases_are_there_where_the_config_says_so(tmp_path: Path) -> None:
    plain, biased = saved("llama", tmp_path / "a", attention_bias=False), saved("llama", tmp_path / "b", mlp_bias=True)
    more = biased.tensors().keys() - plain.tensors().keys()
    assert {key.rpartition(".")[2] for key in more} == {"bias"}
    assert len(more) == 2 * 7


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"model_type": "t5", "d_model": 8}, "this is T5's config"),
        (
            {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}},
            "the config of gemma3, a model of text and more, whose text part is Gemma 3: save the text part alone",
        ),
        ({"model_type": "internvl", "llm_config": {"model_type": "llama"}}, "whose text part is Llama"),
        ({"model_type": "llama4", "text_config": {"model_type": "llama4_text"}}, "whose text part is llama4_text"),
        (
            {"architectures": ["X"], "language_config": {}},
            "an unknown kind, a model of .* text part is a language model",
        ),
        (
            {"model_type": "opt", "do_layer_norm_before": False},
            "its do_layer_norm_before is false, and OPT is known with true alone",
        ),
        ({"model_type": "falcon", "new_decoder_architecture": False}, "its new_decoder_architecture is false, and"),
        ({"model_type": "falcon", "new_decoder_architecture": True, "alibi": True}, "its alibi is true, and Falcon"),
        ({"model_type": "falcon"}, "its new_decoder_architecture is null, and Falcon is known with true alone"),
        ({"model_type": "llama", "hidden_size": 48}, "this is Llama's config, and its num_hidden_layers is null"),
    ],
)
def test_what_no_card_describes_is_refused_with_the_reason(document: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        card("huggingface").native_keys(document)
