"""What a cache must compute."""

from __future__ import annotations

from typing import Any

import torch

from tests.conftest import TINY, random_batch

PROMPT = TINY["prompt_length"]


def decodes_as_one_forward(model: Any) -> None:
    """Steps with past keys and values equal one full forward in which the generated words are not context."""
    words = torch.randint(1, TINY["vocab_size"], (2, 6))
    generated = model.generate(words, max_new_tokens=5)
    full = random_batch(2, 11)
    full["input"][:, PROMPT:] = generated
    full["length"].fill_(PROMPT + 11)
    full["context"][:, PROMPT:] = torch.arange(11) < 6
    with torch.no_grad():
        logits, _ = model(**full)
        past, start = None, 0
        for column in range(6, 12):
            new = slice(PROMPT + start if start else 0, PROMPT + column)
            grown = {key: full[key][:, : PROMPT + column] for key in ("context", "segment", "span")}
            length = torch.full((2,), column)
            step, _, past = model.inference(full["input"][:, new], length, position=None, past_key_values=past, **grown)
            assert (step - logits[:, new]).abs().max() < 5e-6
            start = column
    assert torch.equal(logits[:, PROMPT + 5 : -1].argmax(-1), generated[:, 6:])
