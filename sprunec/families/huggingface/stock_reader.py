"""Open a directory with `transformers`, and tell what it says of some texts: a script.

    python stock_reader.py DIRECTORY TEXTS SAID own|stock whole|parts STEPS

TEXTS has ids (n,), one tensor a text; SAID gets `logits`, (n, V) in float32 for each, and `gap`, how far those of the
longest text are from what it says when the last STEPS positions come one by one behind past keys and values. Either way
the library's own loader gives the class its weights. For `parts` it is given tensors that stay in their files.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from sprunec.checkpoint.file_tensors import file_tensors


def opened(directory: Path, *, own: bool, whole: bool) -> Any:
    """Open it in float32.

    Args:
        own: whether the directory's own code is run.
        whole: whether its weights are read into memory, as users do.

    Raises:
        ValueError: a weight is missing, or no part of the class: the library would go on without it.
    """
    trusting: dict[str, Any] = {"trust_remote_code": own}
    # Other kinds of attention leave parts out in some releases.
    how = {"dtype": torch.float32, "attn_implementation": "eager", "output_loading_info": True}
    if whole:
        model, told = AutoModelForCausalLM.from_pretrained(directory, **trusting, **how)
    else:
        config = AutoConfig.from_pretrained(directory, **trusting)
        with torch.device("meta"):
            kind = type(AutoModelForCausalLM.from_config(config, **trusting))
        model, told = kind.from_pretrained(None, config=config, state_dict=file_tensors(directory), **how)
    if wrong := {what: sorted(map(str, names))[:3] for what, names in told.items() if names}:
        raise ValueError("; ".join(f"{what.replace('_', ' ')}: {', '.join(names)}" for what, names in wrong.items()))
    return model.eval()


@torch.no_grad()
def said(model: Any, texts: list[Tensor], steps: int) -> dict[str, Any]:
    """Run each text in one go, and the longest one also with its last positions one by one."""
    rows = [model(input_ids=row[None], use_cache=False).logits[0] for row in texts]
    longest = max(range(len(texts)), key=lambda row: len(texts[row]))
    text, past, gap, done = texts[longest], None, 0.0, 0
    for part in text.tensor_split([*range(max(len(text) - steps, 1), len(text))]) if steps else ():
        step = model(input_ids=part[None], past_key_values=past, use_cache=True)
        past, end = step.past_key_values, done + len(part)
        # a NaN must not pass as "no difference"
        worst = float((step.logits[0] - rows[longest][done:end]).abs().max())
        gap, done = max(gap, worst) if worst == worst else worst, end
    return {"logits": rows, "gap": gap}


if __name__ == "__main__":
    directory, texts, found, own, way, steps = sys.argv[1:]
    model = opened(Path(directory), own=own == "own", whole=way == "whole")
    torch.save(said(model, torch.load(texts, weights_only=True), int(steps)), found)
