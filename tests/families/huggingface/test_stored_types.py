"""Models stored in half precision: cut as they are, and opened again by their class in what they are stored in."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sprunec.checkpoint.reader import Tensors
from sprunec.families.base import family_of
from sprunec.families.base_config import everything
from sprunec.families.huggingface import stock_files
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.families.model_directory import open_model_tensors, save_model
from sprunec.models.comparison import NOISES, compare
from sprunec.models.meta_models import empty_model, traced, traced_shape
from sprunec.models.streamed import largest
from sprunec.plan.export_formats import Emission
from sprunec.rewrite.gating import mask
from sprunec.rewrite.recipe import make_recipe
from sprunec.units import Kept
from tests.helpers.causal_lms import CONFIGS, PLAIN, token_ids
from tests.helpers.cut_lms import graphs, saved
from tests.runs.test_causal_lms import LAYERS

CUTS = {unit: (unit,) for unit in ("block", "kv_group", "head", "dim_ff")} | {"all": ("block", "kv_group", "dim_ff")}
STORED = [
    pytest.param(
        name,
        dtype,
        marks=[pytest.mark.slow] * (name not in ("llama", "falcon") or (name, dtype) == ("qwen3", torch.float16)),
    )
    for dtype, names in ((torch.bfloat16, CONFIGS), (torch.float16, ("qwen3", "gpt2")))
    for name in names
]
# What stock classes have no config for: heads of another width than D / H, feed-forward dims other than 4 D.
OWN = {name: {"head"} for name in ("opt", "gpt2", "gptj", "gpt_neox")} | {
    "falcon": {"kv_group", "head", "all"},
    "bloom": {"dim_ff", "all"},
}


def uniform(config: TransformersConfig, units: Collection[str]) -> Kept:
    """As much of each layer, and of each one something else; of three blocks the middle one goes."""
    left = []
    for number, layer in enumerate(everything(config)):
        shape, kept = config.layers[number], dict(layer)
        each = shape.heads // (shape.kv_groups or shape.heads)
        if "dim_ff" in units:
            kept["dim_ff"] = tuple(range(number, number + 40))
        if "kv_group" in units and shape.kv_groups:
            group = number % 2
            kept |= {"kv_group": (group,), "head": tuple(range(group * each, (group + 1) * each))}
        elif "head" in units:  # four of six: two of each group, or any
            kept["head"] = tuple(head for head in layer["head"] if head % 3 != number)
        left.append({} if "block" in units and number == 1 else kept)
    return Kept(left)


def opened_again(directory: Path, small: TransformersConfig, weights: Tensors, dtype: torch.dtype) -> None:
    """Its class is as far from the graphs' float64 as their own arithmetic is, in float32 and in what is stored."""
    ids = token_ids(2, 11)
    with torch.no_grad():
        exact = graphs(small, weights, directory).double()(ids)[0]
        for arithmetic, asked in ((dtype, "auto"), (torch.float32, torch.float32)):
            how = {"dtype": asked, "attn_implementation": "eager", "trust_remote_code": True}
            model = AutoModelForCausalLM.from_pretrained(directory, **how).eval()
            assert {parameter.dtype for parameter in model.parameters()} == {arithmetic}
            said = model(input_ids=ids, use_cache=False).logits.double()
            noise = largest(graphs(small, weights, directory).to(arithmetic)(ids)[0].double() - exact)
            assert largest(said - exact) <= NOISES * noise
            assert noise < 1e-3 or arithmetic == dtype


@pytest.mark.parametrize(("name", "dtype"), STORED)
def test_half_precision_is_cut_and_emitted_as_it_is(
    name: str, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    changes = LAYERS.get(name, {"num_hidden_layers": 3}) | PLAIN.get(name, {})
    _, config, tensors = saved(name, tmp_path / "dense", dtype, **changes)
    blocks, own = traced_shape(config), set()
    for what, units in CUTS.items():
        there = [unit for unit in units if unit == "block" or unit in {*blocks[0].sites} - {*config.layout.fixed}]
        if not there:
            continue
        kept = uniform(config, there)
        cut = kept.inside(everything(config))
        small = config.cut(everything(config), kept)
        state = make_recipe(blocks, cut).cut({key: tensors.copy(key) for key in tensors})
        (tmp_path / what).mkdir()
        save_model(tmp_path / what, small, kept, state)
        weights = open_model_tensors(tmp_path / what)
        assert weights.shapes() == small.tensors() and {weights.dtype(key) for key in weights} == {dtype}
        full = empty_model(config)
        models = [(mask(full, traced(full, config), cut), tensors), (empty_model(small), weights)]
        inputs: dict[str, Tensor] = {"input": token_ids(3, 9), "length": torch.tensor([9, 9, 5])}
        found = compare(family_of(config), models, [inputs], torch.device("cpu"))
        assert found["max_abs_difference"] < 1e-10, what
        assert found["float32_difference"] < found["float32_tolerance"], what
        emission = Emission(tmp_path / what, tmp_path / "dense", small, {}, {})
        if stock_files.write(emission, tmp_path / f"{what}-out")["classes"] == "own":
            own.add(what)
        opened_again(tmp_path / f"{what}-out", small, weights, dtype)
    assert own == OWN.get(name, set())
