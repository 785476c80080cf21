"""Losses in chunks of positions are those of all logits at once, and so are their gradients."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sprunec.data.batches import IGNORED, Batch
from sprunec.engines import losses as chunked
from sprunec.engines.losses import cross_entropy, language_model_loss, losses
from tests.conftest import tiny_model
from tests.engines.test_loop import batch
from tests.families.huggingface.test_cut_models import graphs, saved
from tests.helpers.causal_lms import VOCABULARY, token_ids


def stock(name: str, **changes: Any) -> nn.Module:
    """A model of transformers as it is trained here."""
    with TemporaryDirectory() as folder:
        _, config, tensors = saved(name, Path(folder), **changes)
        return graphs(config, tensors, Path(folder))


def text_batch() -> Batch:
    ids = token_ids(3, 12)
    targets = ids.roll(-1, 1)
    targets[:, -1] = targets[0, :4] = IGNORED
    return Batch({"input": ids, "length": torch.full((3,), 12)}, targets)


MODELS = {
    "CPM-Ant": lambda: (tiny_model(), batch(0)),
    "CPM-Ant, own head": lambda: (tiny_model(tie_word_embeddings=False), batch(0)),
    "Llama": lambda: (stock("llama", tie_word_embeddings=False), text_batch()),
    "Gemma 3, tied": lambda: (stock("gemma3_text"), text_batch()),
}


def at_once(model: nn.Module, data: Batch) -> Tensor:
    logits, _ = model(**data.inputs)
    return F.cross_entropy(logits.flatten(0, 1).float(), data.targets.flatten(), ignore_index=IGNORED, reduction="sum")


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(params=[1, 7, 10**6], ids=lambda positions: f"{positions} at a time")
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(chunked.CHUNKS, "cpu", request.param * VOCABULARY)
    return request.param


@pytest.mark.parametrize("name", [*MODELS])
def test_loss_and_gradients_are_those_of_all_logits_at_once(name: str, chunk: int) -> None:
    model, data = MODELS[name]()
    wanted, found = at_once(model, data), language_model_loss(model, data)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    wants, finds = gradients(model, wanted), gradients(model, found)
    assert wants.keys() <= finds.keys()
    for key, gradient in wants.items():
        assert (finds[key] - gradient).abs().max() < 1e-5 * gradient.abs().max().clamp(min=1.0), key


def test_several_losses_are_each_told_and_their_sum_has_the_gradients(chunk: int) -> None:
    model, data = MODELS["Llama"]()

    def squares(logits: Tensor, places: Tensor) -> Tensor:
        return logits.square().sum()

    total, each = losses(model, data, [cross_entropy(data, 0.5), squares])
    logits, _ = model(**data.inputs)
    asked = data.targets != IGNORED
    wanted = 0.5 * F.cross_entropy(logits[asked], data.targets[asked], reduction="sum") + logits[asked].square().sum()
    assert each.tolist() == pytest.approx([0.5 * at_once(model, data).item(), logits[asked].square().sum().item()])
    finds, wants = gradients(model, total), gradients(model, wanted)
    assert max(float((finds[key] - wants[key]).abs().max() / wants[key].abs().max()) for key in wants) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_head_sees_scaled_gradients(dtype: torch.dtype, chunk: int) -> None:
    """So small a share of the loss is 0 in fp16 unless it is multiplied first; bf16 needs no scale."""
    model, data = MODELS["Llama"]()
    scale, share = 2.0**16, 2.0**-22

    def learned(scale: float) -> Tensor:
        with torch.autocast("cpu", dtype):
            total, _ = losses(model, data, [cross_entropy(data, share)], scale)
        return gradients(model, total * scale)["lm_head.weight"] / scale / share

    wanted = gradients(model, at_once(model, data))["lm_head.weight"]
    size = float(wanted.abs().max())
    assert float((learned(scale) - wanted).abs().max()) < 0.02 * size
    lost = float((learned(1.0) - wanted).abs().max()) > 0.02 * size
    assert lost == (dtype == torch.float16)


def test_what_is_frozen_gets_no_gradient() -> None:
    model, data = MODELS["Llama"]()
    model.lm_head.requires_grad_(False)
    model.model.norm.requires_grad_(False)
    found = gradients(model, language_model_loss(model, data))
    assert "lm_head.weight" not in found and "model.norm.weight" not in found
    wanted = gradients(model, at_once(model, data))
    assert max(float((found[key] - wanted[key]).abs().max()) for key in wanted) < 1e-4


def test_a_batch_without_targets_has_no_loss() -> None:
    model, data = MODELS["Llama"]()
    nothing = Batch(data.inputs, torch.full_like(data.targets, IGNORED))
    loss = language_model_loss(model, nothing)
    assert loss.item() == 0.0
    assert all(float(gradient.abs().max()) == 0.0 for gradient in gradients(model, loss).values())


def test_a_head_with_a_bias_learns_both(chunk: int) -> None:
    model, data = MODELS["Llama"]()
    model.lm_head.bias = nn.Parameter(torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0)))
    wants = gradients(model, at_once(model, data))
    finds = gradients(model, language_model_loss(model, data))
    for key in ("lm_head.bias", "lm_head.weight", "model.norm.weight"):
        assert float((finds[key] - wants[key]).abs().max()) < 1e-5 * float(wants[key].abs().max()), key


class Made(TorchDispatchMode):
    """Counts tensors of a size that operations have made, none of them in place."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.shape == self.shape and not func._schema.is_mutable:
            self.count += not func.is_view
        return found


@pytest.mark.parametrize("name", [*MODELS])
def test_gradients_of_the_head_are_added_up_in_place(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = MODELS[name]()
    monkeypatch.setitem(chunked.CHUNKS, "cpu", VOCABULARY)  # a chunk is a position
    shape = max((p.shape for p in model.parameters() if p.size(0) == VOCABULARY), key=len)
    with Made(shape) as made:
        language_model_loss(model, data)
    assert made.count == 1 < data.target_count


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that is made meanwhile."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        made = found if isinstance(found, (tuple, list)) else [found]
        self.size = max([self.size, *(tensor.numel() for tensor in made if isinstance(tensor, Tensor))])
        return found


def test_no_tensor_has_a_number_for_each_position_and_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = MODELS["Llama"]()
    monkeypatch.setitem(chunked.CHUNKS, "cpu", 4 * VOCABULARY)
    largest = max(parameter.numel() for parameter in model.parameters())
    assert largest < data.targets.numel() * 2 * VOCABULARY
    long = Batch({"input": token_ids(6, 60), "length": torch.full((6,), 60)}, token_ids(6, 60))
    with Largest() as seen:
        language_model_loss(model, long).backward()
    with Largest() as plain:
        at_once(model, long).backward()
    assert seen.size < plain.size == 360 * VOCABULARY
