"""What is read off a class without knowing it, held against the rows of data about the same classes."""

from __future__ import annotations

import json
from collections.abc import Collection

import pytest
from transformers import AutoConfig

from sprunec.families.cards import native
from sprunec.families.huggingface.model_types import LAYOUTS
from sprunec.families.huggingface.tensor_layouts import KEYS
from sprunec.families.huggingface.traced_layout import read_layout
from sprunec.families.huggingface.transformers_config import TransformersConfig
from tests.helpers.causal_lms import CONFIGS
from tests.helpers.undescribed_lm import OwnConfig

SPARSE = {"model_type": "mixtral", "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 16}
RENAMED = {"gpt_neox": {"lm_head.weight": "embed_out.weight"}}  # on disk it has another name than in memory


def smaller(config: TransformersConfig, fixed: Collection[str]) -> TransformersConfig:
    """Of a kind of unit that can be cut, another number in every layer."""
    layers = list(config.layers)
    for index, layer in enumerate(layers):
        heads = {"kv_group": 1} if layer.kv_groups else {"head": 3 - index}
        layers[index] = layer.resized({"dim_ff": 17 + index} | ({} if "head" in fixed else heads))
    return config.with_layers(layers)


@pytest.mark.parametrize("name", CONFIGS)
def test_graphs_say_what_the_row_says(name: str) -> None:
    document = AutoConfig.for_model(name, **CONFIGS[name]).to_dict()
    found = read_layout(json.dumps(document))
    traced, known = (TransformersConfig.from_source(document, each) for each in (found, None))
    names = RENAMED.get(name, {})
    fixed = {**traced.layout.fixed, **known.layout.fixed}
    for ours, theirs in ((traced, known), (smaller(traced, fixed), smaller(known, fixed))):
        assert {names.get(tensor, tensor): shape for tensor, shape in ours.tensors().items()} == theirs.tensors()
    assert [each.counts["head"] for each in traced.layers] == [each.counts["head"] for each in known.layers]
    keys = {letter: found["layout"]["keys"][letter] for letter in "LDHGF"}
    assert all(
        not each or each[0] in (*KEYS[letter], *LAYOUTS[name].keys.get(letter, ())) for letter, each in keys.items()
    )
    assert keys["L"] and keys["D"] and keys["H"]
    assert {*traced.layout.input_first} == {*known.layout.input_first}


def test_a_class_of_other_names_is_read() -> None:
    config = TransformersConfig.from_dict(native(OwnConfig(depth=6).to_dict()))
    layout = config.layout
    assert (layout.blocks, layout.head, next(iter(layout.tables))) == ("floors", "say.weight", "words.weight")
    assert layout.attention == {"before.gain": "48", "mixer.into.weight": "10H+20G 48", "mixer.out.weight": "48 10H"}
    wanted = {"L": ["depth"], "D": ["channels"], "H": ["queries"], "G": ["groups"], "E": ["per_head"], "F": ["inner"]}
    assert layout.keys == wanted  # depth is 6 as well, but no block is built by it
    assert config == TransformersConfig.from_dict(json.loads(json.dumps(config.to_dict())))


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({"model_type": "no-such-model"}, "this is no-such-model's config, and .*has no no-such-model"),
        ({"model_type": "t5"}, "this is T5's config, and it is no causal language model"),
        ({"model_type": "bert"}, "this is BERT's config, and BertLMHeadModel does not run on the meta device"),
        (SPARSE, "this is Mixtral's config, and (model.layers.0.mlp.experts|MixtralForCausalLM) .*"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(document: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        native(document)
