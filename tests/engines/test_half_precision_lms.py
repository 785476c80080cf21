"""Models of transformers in bf16: products alone, between weights, moments, norms and angles in float32."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sprunec.engines.device import Place
from sprunec.engines.loop import Trainer
from sprunec.engines.torch_engine import TorchEngine
from tests.engines.test_loop import CPU
from tests.helpers.stock_training import learn

HALF = TorchEngine(Place.of("cpu", "bf16"))
PRODUCTS = ("mm", "addmm", "bmm", "_scaled_dot_product_flash_attention_for_cpu")
EXACT = ("rsqrt", "cos", "sin", "_softmax", "_log_softmax", "native_layer_norm")
FAR = 0.03  # of a loss: steps are large, and bf16 has 8 bits


class Dtypes(TorchDispatchMode):
    """Notes in what each operation works."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = defaultdict[str, set[torch.dtype]](set)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.is_floating_point()]
        self.seen[func.overloadpacket.__name__] |= {tensor.dtype for tensor in tensors if not tensor.is_meta}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text", "gpt2", "gpt_neox"])
def test_products_are_taken_in_half_precision_and_what_is_learned_is_float32(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers, dtypes, step = list[Trainer](), Dtypes(), Trainer.step

    def watched(self: Trainer, *args: Any) -> Any:
        trainers.append(self)
        with dtypes:
            return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", watched)
        losses, _, _ = learn(HALF, name, tmp_path)
    driver = trainers[0].driver
    moments = [value for entry in driver.optimizer.state.values() for value in entry.values() if value.dim()]
    assert {tensor.dtype for tensor in (*driver.model.parameters(), *moments)} == {torch.float32}
    assert {dtype for op in PRODUCTS for dtype in dtypes.seen[op]} == {torch.bfloat16}
    assert {dtype for op in EXACT for dtype in dtypes.seen[op]} == {torch.float32}
    wanted, _, _ = learn(CPU, name, tmp_path)
    assert losses[-1] < losses[0] - 0.1
    assert max(abs(a - b) / b for a, b in zip(losses, wanted, strict=True)) < FAR
