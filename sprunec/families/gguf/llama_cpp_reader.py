"""Open a GGUF file with llama.cpp, and tell what it says of some texts: a script.

    python llama_cpp_reader.py FILE TEXTS SAID STEPS

TEXTS has ids (n,), one tensor a text; SAID gets `logits`, (n, V) in float32 for each; and of STEPS tokens, with which
it goes on greedily behind `before`, the longest text's first ones, their `ids` and what each adds to it, `pieces`. Past
keys and values are in float32: in the runtime's usual float16 they would decide how close it comes.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from llama_cpp import GGML_TYPE_F32, Llama, llama_cpp
from torch import Tensor

BEHIND = 16  # tokens that it goes on from


def lay_out_plainly() -> None:
    """Have weights lie as in the file: laid out for AMX, quantized ones end the process on some virtual machines."""
    usual = llama_cpp.llama_model_default_params

    def plain() -> Any:
        found = usual()
        found.use_extra_bufts = False
        return found

    llama_cpp.llama_model_default_params = plain


def opened(file: str, length: int) -> Llama:
    """Open a file for texts of a length."""
    lay_out_plainly()
    exact = {"type_k": GGML_TYPE_F32, "type_v": GGML_TYPE_F32, "flash_attn": False}
    return Llama(file, n_ctx=length, n_batch=length, n_ubatch=length, n_gpu_layers=0, logits_all=True, **exact)


def logits(model: Any, ids: list[int]) -> Tensor:
    """Run a text in one go."""
    model.reset()
    model.eval(ids)
    return torch.from_numpy(model.scores[: len(ids)].copy())


def going_on(model: Any, ids: list[int], steps: int) -> list[int]:
    """Add the likeliest token, so many times, each behind past keys and values."""
    found = list[int]()
    model.reset()
    model.eval(ids)
    for _ in range(steps):
        found.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        model.eval(found[-1:])
    return found


def pieces(model: Any, ids: list[int]) -> list[str]:
    """Write each token as text, so that together they are the text of all; a file without a tokenizer has numbers."""
    if model.metadata.get("tokenizer.ggml.model") in ("none", "no_vocab"):
        return [f" {token}" for token in ids]
    ends = [model.detokenize(ids[: count + 1]).decode("utf-8", "ignore") for count in range(len(ids))]
    return [end[len(before) :] for before, end in zip(["", *ends], ends, strict=False)]


if __name__ == "__main__":
    file, texts, said, steps = sys.argv[1:]
    rows = [row.tolist() for row in torch.load(texts, weights_only=True)]
    longest, more = max(rows, key=len), int(steps)
    before, model = longest[:BEHIND], opened(file, len(longest) + more)
    found = going_on(model, before, more)
    spoken = {"before": before, "ids": found, "pieces": pieces(model, found)}
    torch.save({"logits": [logits(model, row) for row in rows], **spoken}, said)
