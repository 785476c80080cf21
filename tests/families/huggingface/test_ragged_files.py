"""Models whose layers are unlike, as directories that transformers opens with the code that lies in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sprunec.checkpoint.reader import open_tensors
from sprunec.families.base_config import everything
from sprunec.families.huggingface.ragged_files import cache_slots, kinds_of_cache
from sprunec.families.huggingface.stock_files import write
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.families.model_directory import open_model_tensors, save_model
from sprunec.models.meta_models import traced_shape
from sprunec.plan.export_formats import Emission
from sprunec.rewrite.recipe import make_recipe
from sprunec.units import Kept
from tests.helpers.causal_lms import families, token_ids
from tests.helpers.cut_lms import fewer, graphs, saved

OTHERS: dict[str, dict[str, Any]] = {
    "smollm3": {"no_rope_layers": [1, 0, 1, 0, 1]},
    "gpt2": {"scale_attn_by_inverse_layer_idx": False},
}


def ragged(config: TransformersConfig) -> Kept:
    """No attention in the first layer, no third layer, no feed-forward in the fourth; the others each with its own."""
    first, second, _, fourth, last = fewer(config)
    inside = dict(first)
    return Kept(({"dim_ff": inside["dim_ff"]}, second, {}, {k: v for k, v in fourth.items() if k != "dim_ff"}, last))


def cut_to(folder: Path, config: TransformersConfig, kept: Kept) -> TransformersConfig:
    """Cut what lies in a folder, and write it as its class or one of its own -> what is left."""
    tensors = open_tensors(folder / "dense")
    state = {name: tensors.copy(name) for name in tensors}
    small = config.cut(everything(config), kept)
    cut = make_recipe(traced_shape(config), kept.inside(everything(config))).cut(state)
    save_model(folder / "small", small, kept, cut)
    write(Emission(folder / "small", folder / "dense", small, {}, {}), folder / "out")
    return small


def opened(folder: Path) -> Any:
    # Loaded in bfloat16, some classes round factors of theirs too, such as Gemma's of embeddings. With torch's own
    # attention, release 4.57 leaves Gemma's caps out.
    how = {"trust_remote_code": True, "dtype": torch.float32, "attn_implementation": "eager"}
    return AutoModelForCausalLM.from_pretrained(folder / "out", **how).eval()


@torch.no_grad()
def said(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model says in one go, and with its last positions one by one behind past keys and values."""
    found, past = list[torch.Tensor](), None
    for part in ids.tensor_split([*range(7, ids.size(1))], dim=1):
        step = model(input_ids=part, past_key_values=past, use_cache=True)
        past = step.past_key_values
        found.append(step.logits)
    return model(input_ids=ids, use_cache=False).logits, torch.cat(found, dim=1)


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def emitted(folder: Path, name: str, dtype: torch.dtype) -> tuple[TransformersConfig, Any]:
    """Write a tiny model, cut, as a directory -> what is left of it, and as it is opened again."""
    depth = {"n_layer": 5} if name in ("gpt2", "gptj", "bloom") else {"num_hidden_layers": 5}
    _, config, _ = saved(name, folder / "dense", dtype, **depth, **OTHERS.get(name, {}))
    return cut_to(folder, config, ragged(config)), opened(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", families())
def test_unlike_layers_are_opened_as_they_were_cut(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    config, reopened = emitted(tmp_path, name, dtype)
    assert (tmp_path / "out/model.safetensors").samefile(tmp_path / "small/model.safetensors")  # written once
    assert open_tensors(tmp_path / "out").dtype(next(iter(config.layout.tables))) == dtype
    assert sum(parameter.numel() for parameter in reopened.parameters()) == config.parameters()
    ids = token_ids(2, 11)
    with torch.no_grad():
        ours, _ = graphs(config, open_model_tensors(tmp_path / "small"), tmp_path / "small")(ids)
    theirs, decoded = said(reopened, ids)
    assert (theirs - ours).abs().max() < 5e-5 * ours.abs().max()
    assert (decoded - theirs).abs().max() < 5e-5 * ours.abs().max()


@pytest.mark.parametrize("silent", [(0,), (0, 1), (1, 2), (0, 1, 2, 4), (5,)], ids=str)
@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "cohere2"])
def test_windows_of_attention_are_cached_where_some_layers_have_none(
    name: str, silent: tuple[int, ...], tmp_path: Path
) -> None:
    """Layers see eight positions or all of them, and the text is longer; the first of a kind may have no attention."""
    kinds = ["sliding_attention", "sliding_attention", "full_attention"] * 2
    _, config, _ = saved(name, tmp_path / "dense", num_hidden_layers=6, layer_types=kinds)
    whole = everything(config)
    left = ({"dim_ff": layer["dim_ff"]} if index in silent else layer for index, layer in enumerate(whole))
    cut_to(tmp_path, config, Kept(left))
    theirs, decoded = said(opened(tmp_path), token_ids(1, 19))
    assert (decoded - theirs).abs().max() < 5e-5 * theirs.abs().max()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_a_head_of_the_file_s_own_is_kept_where_the_config_ties_it(name: str, tmp_path: Path) -> None:
    model, config, _ = saved(name, tmp_path / "dense", tie_word_embeddings=False)
    document = json.loads((tmp_path / "dense/config.json").read_text()) | {"tie_word_embeddings": True}
    config = TransformersConfig.from_source(document).with_head(own=True)
    cut_to(tmp_path, config, everything(config))
    ids = token_ids(2, 9)
    with torch.no_grad():
        wanted = model(input_ids=ids, use_cache=False).logits
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
    assert (said(opened(tmp_path), ids)[0] - wanted).abs().max() < 5e-5 * wanted.abs().max()


def test_a_place_in_the_cache_is_taken_from_layers_that_have_no_attention() -> None:
    attending = [False, False, True, True, False, True, False]
    assert kinds_of_cache(attending) == [2, 2, 2, 3, 5, 5, 5]
    slots = cache_slots(attending)
    assert [slots[index] for index, has in enumerate(attending) if has] == [0, 3, 4]


def test_the_code_in_the_directory_is_short_and_names_the_class(tmp_path: Path) -> None:
    emitted(tmp_path, "qwen3", torch.float32)
    code = (tmp_path / "out/modeling_pruned.py").read_text()
    assert "from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM, Qwen3Config" in code
    assert len(code.splitlines()) < 80
    layers = json.loads((tmp_path / "out/config.json").read_text())["pruned"]["layers"]
    gone = {tuple(sorted(layer["absent"])): layer["cache"] for layer in layers}
    assert gone == {("input_layernorm", "self_attn"): 0, (): 3, ("mlp", "post_attention_layernorm"): 2}
    assert all(not layer["shapes"] for layer in layers)
