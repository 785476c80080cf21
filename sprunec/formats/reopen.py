"""Emitted forms opened again from disk, the way that their users open them: what they are given, and their logits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sprunec.checkpoint.reader import Tensors
from sprunec.data.batches import Batch
from sprunec.durable import read_file
from sprunec.errors import FormError
from sprunec.families.cpm_ant import huggingface_names as hf
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.walk import Inputs, in_use
from sprunec.formats import cpm_live, huggingface, pt2

OPENED_BY_TRANSFORMERS = """
import sys, torch
from transformers import AutoModelForCausalLM
directory, words, logits, own = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=own == "own").float().eval()
with torch.no_grad():
    rows = [model(input_ids=row[None], use_cache=False).logits for row in torch.load(words, weights_only=True)]
torch.save([row[0] for row in rows], logits)
"""


def plain_inputs(directory: Path, config: ModelConfig, batch: Batch) -> list[Inputs]:
    """Batches as they are."""
    return [batch.inputs]


def two_words_at_least(directory: Path, config: ModelConfig, batch: Batch) -> list[Inputs]:
    """Batches as they are, or wider by a column of padding: an exported program takes no rows of one word."""
    if batch.inputs["input"].size(1) > config.prompt_length + 1:
        return [batch.inputs]
    return [{name: tensor if tensor.dim() == 1 else F.pad(tensor, (0, 1)) for name, tensor in batch.inputs.items()}]


def texts_behind_prompts(directory: Path, config: ModelConfig, batch: Batch) -> list[Inputs]:
    """Every row's words behind one prompt, all of them context, as `transformers` sees what it is given."""
    about = json.loads(read_file(directory / "config.json"))
    task, segment = about.get("task", hf.STOCK_TASK), about.get("segment", hf.STOCK_SEGMENT)
    prompt = config.prompt_length
    rows = zip(batch.inputs["input"], batch.inputs["length"].tolist(), strict=True)
    texts = [row[prompt:length].clamp(1, config.vocab_size - 1) for row, length in rows if length > prompt]
    return [all_context(text, prompt, task, segment) for text in texts]  # word 0 would be padding


@torch.no_grad()
def cpm_live_logits(directory: Path, config: ModelConfig, inputs: list[Inputs]) -> Tensor:
    """In float32 arithmetic."""
    model = cpm_live.read(directory).float()
    return torch.cat([model(**batch)[0][in_use(batch)] for batch in inputs])


@torch.no_grad()
def pt2_logits(directory: Path, config: ModelConfig, inputs: list[Inputs]) -> Tensor:
    """The program in the dtype that it was exported in."""
    program = pt2.read(directory)
    return torch.cat([program(*(batch[name] for name in pt2.NAMES))[0][in_use(batch)] for batch in inputs])


def huggingface_logits(directory: Path, config: ModelConfig, inputs: list[Inputs]) -> Tensor:
    """Opened in a process of its own: it runs the directory's code, and writes a cache of it."""
    with tempfile.TemporaryDirectory() as folder:
        words, logits = Path(folder) / "words.pt", Path(folder) / "logits.pt"
        torch.save([batch["input"][0, config.prompt_length :] for batch in inputs], words)
        own = "own" if huggingface.has_own_classes(directory) else "stock"
        _run([directory, words, logits, own], folder)
        found = torch.cat([row.float() for row in torch.load(logits, weights_only=True)])
    return found[:, : config.vocab_size]  # before release 5 the head has the prompts' rows too


def all_context(words: Tensor, prompt_length: int, task: int, segment: int) -> dict[str, Tensor]:
    """Inputs of `CPMAnt.forward` for one row of words (T,), as `transformers` gives them."""
    columns = prompt_length + words.numel()
    prompt = torch.arange(prompt_length) + task * prompt_length
    return {
        "input": torch.cat([prompt, words.long()])[None],
        "length": torch.tensor([columns]),
        "context": torch.ones(1, columns, dtype=torch.bool),
        "segment": (torch.arange(columns) >= prompt_length).long()[None] * segment,
        "span": torch.zeros(1, columns, dtype=torch.long),
    }


def _run(arguments: list[object], folder: str) -> None:
    script = [sys.executable, "-P", "-c", OPENED_BY_TRANSFORMERS, *map(str, arguments)]
    quiet = {"HF_HOME": folder, "HF_MODULES_CACHE": f"{folder}/modules", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(script, env=os.environ | quiet, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FormError(f"transformers cannot open the form huggingface: {last}")


def text_only(batch: Inputs) -> Tensor:
    """(1, N): the columns that hold a text behind its prompt."""
    return batch["segment"] != 0


def _config_dtype(directory: Path, weights: Tensors) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, json.loads(read_file(directory / "config.json"))["dtype"])
    return dtype


def _model_dtype(directory: Path, weights: Tensors) -> torch.dtype:
    return weights.dtype("input_embedding.weight")


def _live_dtype(directory: Path, weights: Tensors) -> torch.dtype:
    return cpm_live.read(directory).input_embedding.weight.dtype


@dataclass(frozen=True)
class Form:
    """How a form is held against the model it was made of.

    Attributes:
        logits: what it says to inputs, (columns, V).
        dtype: what its weights are stored in.
        inputs: those of `CPMAnt.forward` that it can be given, for a batch.
        used: which columns (B, N) it gives logits for.
        exact: whether the weights are the model's own, and not rounded again.
        in_its_dtype: it computes in the dtype that it stores.
    """

    logits: Callable[[Path, ModelConfig, list[Inputs]], Tensor]
    dtype: Callable[[Path, Tensors], torch.dtype]
    inputs: Callable[[Path, ModelConfig, Batch], list[Inputs]] = plain_inputs
    used: Callable[[Inputs], Tensor] = in_use
    exact: Callable[[Path], bool] = lambda directory: False
    in_its_dtype: bool = False


FORMS = {
    "cpm-live": Form(cpm_live_logits, _live_dtype),
    "huggingface": Form(
        huggingface_logits, _config_dtype, texts_behind_prompts, text_only, exact=huggingface.has_own_classes
    ),
    "pt2": Form(pt2_logits, _model_dtype, two_words_at_least, in_its_dtype=True),
}
