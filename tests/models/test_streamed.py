"""A model that is walked through with a few rows of its weights at a time computes what it computes whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sprunec.checkpoint.reader import Tensors, open_tensors
from sprunec.checkpoint.writer import write_state
from sprunec.families.cpm_ant.family import FAMILY
from sprunec.models import streamed
from sprunec.models.meta_models import empty_model
from sprunec.models.streamed import Streamed
from tests.conftest import random_batch, tiny_config, tiny_model

CPU = torch.device("cpu")


@pytest.fixture
def stored(tmp_path: Path) -> Tensors:
    write_state(tiny_model().state_dict(), tmp_path)
    return open_tensors(tmp_path)


def walked(tensors: Tensors, inputs: dict[str, torch.Tensor], tokens: int = 7) -> torch.Tensor:
    """Logits (B, N, V) in float64, of so many tokens at a time."""
    taken = Streamed(FAMILY, empty_model(tiny_config()), tensors, [inputs], torch.float64, CPU)
    taken.run()
    parts = (range(first, min(first + tokens, taken.tokens)) for first in range(0, taken.tokens, tokens))
    with torch.no_grad():
        return torch.cat([taken.leave(taken.hidden[0].flatten(0, 1), part) for part in parts], 1).view(2, -1, 97)


@torch.no_grad()
@pytest.mark.parametrize(("held", "chunk"), [(2**25, 2**23), (0, 1000), (0, 1)], ids=["held", "in chunks", "by rows"])
def test_logits_are_those_of_the_whole_model(
    held: int, chunk: int, stored: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "HELD_BYTES", held)
    monkeypatch.setattr(streamed, "CHUNK_BYTES", chunk)
    inputs = random_batch()
    wanted = tiny_model().double()(**inputs)[0]
    assert float((walked(stored, inputs) - wanted).abs().max()) < 1e-12 < float(wanted.abs().max())


def test_no_large_matrix_is_read_as_a_whole(stored: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed, "HELD_BYTES", 0)
    monkeypatch.setattr(streamed, "CHUNK_BYTES", 1000)
    whole, read, rows = list[str](), Tensors.__getitem__, Tensors.rows
    most: dict[str, int] = {}

    def counted(self: Tensors, name: str, kept: range, buffer: torch.Tensor | None = None) -> torch.Tensor:
        most[name] = max(most.get(name, 0), len(kept))
        return rows(self, name, kept, buffer)

    monkeypatch.setattr(Tensors, "__getitem__", lambda self, name: whole.append(name) or read(self, name))
    monkeypatch.setattr(Tensors, "rows", counted)
    walked(stored, random_batch())
    sizes = {name: stored.shape(name) for name in whole}
    assert sizes and all(len(shape) == 1 for shape in sizes.values())
    assert most["encoder.layers.1.ffn.ffn.w_in.w_0.weight"] == 1000 // (24 * 8)
    assert most["input_embedding.weight"] <= 22  # words looked up, or 7 at a time in the head


def test_parameters_are_meta_again_afterwards(stored: Tensors) -> None:
    model = empty_model(tiny_config())
    before = [(name, parameter.shape) for name, parameter in model.named_parameters()]
    taken = Streamed(FAMILY, model, stored, [random_batch()], torch.float64, CPU)
    taken.run()
    assert [(name, parameter.shape) for name, parameter in model.named_parameters()] == before
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_streamed_weight_computes_as_the_whole_does() -> None:
    whole, bias, states = torch.randn(10, 6).double(), torch.randn(10).double(), torch.randn(2, 3, 6).double()
    read = list[range]()

    def rows(some: range) -> torch.Tensor:
        read.append(some)
        return whole[some.start : some.stop]

    weight = streamed.StreamedWeight(10, 4, rows)
    linear = torch.nn.functional.linear
    for given, found in (
        ((states, whole, bias), linear(states, weight, bias)),
        ((states, whole, bias), linear(states, weight, bias=bias)),
        ((states, whole), linear(states, weight, None)),
        ((states, whole), linear(states, weight)),
    ):
        assert torch.allclose(linear(*given), found, atol=1e-14)
    assert read == [range(4), range(4, 8), range(8, 10)] * 4
    assert torch.equal(weight.whole(), whole)
    assert torch.equal(states @ weight.T, states @ whole.T)
    wide = torch.randn(3, 10).double()
    assert torch.equal(torch.addmm(bias[:6], wide, weight), torch.addmm(bias[:6], wide, whole))
