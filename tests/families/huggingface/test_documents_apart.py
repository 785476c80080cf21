"""Rows of several documents: what is said of each is what is said of it alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sprunec.data.batches import IGNORED, Batch, Packer, answered
from sprunec.engines.losses import language_model_loss
from sprunec.families.cards import card_of
from sprunec.families.huggingface.model_types import UNDIVIDED
from sprunec.families.huggingface.stock_model import undivided
from tests.families.huggingface.test_cut_models import graphs, saved
from tests.helpers.causal_lms import CONFIGS, VOCABULARY

WIDTH, ROWS = 40, ([17, 1, 12], [40], [5, 23], [11])  # a window is of 8


def batch(config: object, rows: list[list[int]], width: int = WIDTH) -> Batch:
    draw = np.random.default_rng(0)
    texts = [[draw.integers(3, VOCABULARY, size) for size in row] for row in rows]
    return Packer(config, width).pack([[answered(t, np.zeros(t.size, bool)) for t in row] for row in texts])


def alone(packed: Batch, sizes: list[list[int]]) -> list[Tensor]:
    """Cut a packed batch's ids into its documents (1, n)."""
    rows = zip(packed.inputs["input"], sizes, strict=True)
    return [part[None] for row, some in rows for part in row[: sum(some)].split(some)]


def documents(logits: Tensor, sizes: list[list[int]]) -> list[Tensor]:
    return [part for row, some in zip(logits, sizes, strict=True) for part in row[: sum(some)].split(some)]


@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.float64])
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in UNDIVIDED])
def test_a_document_in_a_row_is_a_document_alone(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    _, config, tensors = saved(name, tmp_path)
    model, sizes = graphs(config, tensors, tmp_path).to(dtype), [*map(list, ROWS)]
    packed = batch(config, sizes)
    limit = 1e-5 if dtype == torch.float32 else 1e-10
    with torch.no_grad():
        found, plain = (model(**packed.inputs)[0], model(packed.inputs["input"])[0])
        for ids, ours, without in zip(
            alone(packed, sizes), documents(found, sizes), documents(plain, sizes), strict=True
        ):
            wanted = model(ids)[0][0]
            assert float((ours - wanted).abs().max()) <= limit * max(1.0, float(wanted.abs().max()))
            if ids.shape[1] == 23:  # behind another one: without boundaries it would be told something else
                assert float((without - wanted).abs().max()) > 0.01


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "gpt2", "gpt_neox", "mistral"])
def test_gradients_of_a_row_are_the_sum_of_its_documents(name: str, tmp_path: Path) -> None:
    _, config, tensors = saved(name, tmp_path)
    model, sizes = graphs(config, tensors, tmp_path).double().train().requires_grad_(True), [*map(list, ROWS)]
    packed = batch(config, sizes)
    language_model_loss(model, packed).backward()
    found = {key: weight.grad for key, weight in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    for ids in alone(packed, sizes):
        one = Packer(config, ids.shape[1]).pack([[answered(ids[0].numpy(), np.zeros(ids.shape[1], bool))]])
        assert "position" not in one.inputs
        language_model_loss(model, one).backward()
    for key, weight in model.named_parameters():
        assert float((weight.grad - found[key]).abs().max()) <= 1e-6 * max(1.0, float(weight.grad.abs().max())), key


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_said_of_a_class_without_torch_is_so(name: str, tmp_path: Path) -> None:
    _, config, _ = saved(name, tmp_path)
    assert undivided(config) == UNDIVIDED.get(name, "")


def test_a_set_for_cpm_ant_is_refused(tmp_path: Path) -> None:
    _, config, _ = saved("qwen3", tmp_path)
    found = [each.pointer for each in card_of(config).data_findings(config, {"source": "cpm-live"})]
    assert found == ["/data/source"] and not [*card_of(config).data_findings(config, {"source": "text"})]


def test_positions_begin_again_where_a_row_has_several_documents(tmp_path: Path) -> None:
    _, config, _ = saved("qwen3", tmp_path)
    assert [*batch(config, [[4], [7]]).inputs] == ["input", "length"]
    packed = batch(config, [[3, 3], [2]], width=8)
    assert packed.inputs["position"].tolist() == [[0, 1, 2, 0, 1, 2, 0, 1], [0, 1, 0, 1, 2, 3, 4, 5]]
    assert packed.inputs["length"].tolist() == [6, 2]
    assert (packed.targets[0, [2, 5]] == IGNORED).all() and packed.target_count == 5
