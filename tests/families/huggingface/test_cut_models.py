"""Models of transformers as graphs: equal to their classes, whole and cut, at once and token by token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sprunec.checkpoint.reader import open_tensors
from sprunec.checkpoint.writer import write_state
from sprunec.families.base import family_of
from sprunec.families.base_config import everything
from sprunec.models.comparison import compare
from sprunec.models.meta_models import empty_model, traced, traced_shape
from sprunec.rewrite.gating import mask
from sprunec.rewrite.recipe import make_recipe
from tests.helpers.causal_lms import CONFIGS, families, token_ids
from tests.helpers.cut_lms import ABSENT, fewer, graphs, saved


@pytest.mark.parametrize("name", CONFIGS)
def test_graphs_compute_what_the_class_computes(name: str, tmp_path: Path) -> None:
    model, config, tensors = saved(name, tmp_path)
    ids = token_ids(3, 9)
    with torch.no_grad():
        theirs, (ours, _) = model(input_ids=ids, use_cache=False).logits, graphs(config, tensors, tmp_path)(ids)
    assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "gpt2", "opt", "gpt_neox", "falcon"])
def test_tokens_are_those_that_the_class_generates(name: str, tmp_path: Path) -> None:
    model, config, tensors = saved(name, tmp_path)
    ids, generator = token_ids(1, 7), torch.Generator()
    theirs = model.generate(ids, max_new_tokens=10, min_new_tokens=10, do_sample=False)[:, 7:]
    whole = graphs(config, tensors, tmp_path).generate(ids, max_new_tokens=10, temperature=1e-6, generator=generator)
    assert whole[:, 7:].tolist() == theirs.tolist()


@pytest.mark.parametrize("without", ["", *ABSENT])
@pytest.mark.parametrize("name", families())
def test_masked_and_small_are_equal(name: str, without: str, tmp_path: Path) -> None:
    _, config, tensors = saved(name, tmp_path / "dense", num_hidden_layers=2)
    kept = fewer(config, without)
    cut, whole = kept.inside(everything(config)), traced_shape(config)
    state = make_recipe(whole, cut).cut({name: tensors.copy(name) for name in tensors})
    small = config.cut(everything(config), kept)
    (tmp_path / "small").mkdir()
    write_state(state, tmp_path / "small")
    weights = open_tensors(tmp_path / "small")
    assert weights.shapes() == small.tensors()
    full = empty_model(config)
    masked = mask(full, traced(full, config), cut)
    inputs: dict[str, Tensor] = {"input": token_ids(3, 9), "length": torch.tensor([9, 9, 5])}
    models = [(masked, tensors), (empty_model(small), weights)]
    found = compare(family_of(config), models, [inputs], torch.device("cpu"))
    assert found["max_abs_difference"] < 1e-10
    assert found["worst_block_difference"] < 1e-10
    assert found["float32_difference"] < found["float32_tolerance"]
