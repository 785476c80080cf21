"""Places: a device and a precision."""

from __future__ import annotations

import pytest
import torch

from sprunec.engines.device import Place
from sprunec.errors import InputError


def no_accelerator(monkeypatch: pytest.MonkeyPatch, cuda: bool = False, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(("cuda", "mps", "device"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_auto_takes_the_fastest_that_is_here(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, device: str
) -> None:
    no_accelerator(monkeypatch, cuda, mps)
    assert Place.of("auto", "fp32").device.type == device


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
def test_a_device_that_is_not_here_is_an_input_error(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    no_accelerator(monkeypatch)
    with pytest.raises(InputError, match=f"device {device} is not on this machine") as caught:
        Place.of(device, "fp32")
    assert caught.value.diagnostics[0].hint == 'use "auto" or "cpu"'


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_products_are_taken_in_the_precision_and_weights_stay_float32(precision: str, dtype: torch.dtype) -> None:
    place, layer = Place.of("cpu", precision), torch.nn.Linear(4, 4)
    with place.precision():
        assert layer(torch.ones(1, 4)).dtype == dtype
    assert layer.weight.dtype == torch.float32
    assert layer(torch.ones(1, 4)).dtype == torch.float32
    place.synchronize()
