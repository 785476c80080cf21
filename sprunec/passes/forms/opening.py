"""Emitted forms opened again from disk, the way that their users open them: logits for a batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sprunec.data.batches import Batch
from sprunec.errors import PassError
from sprunec.model import hf
from sprunec.model.frame import CPMAnt
from sprunec.passes.forms import cpm_live, huggingface, pt2

OPENED_BY_TRANSFORMERS = """
import sys, torch
from transformers import AutoModelForCausalLM
directory, words, logits, own = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=own == "own").float().eval()
with torch.no_grad():
    rows = [model(input_ids=row[None], use_cache=False).logits for row in torch.load(words, weights_only=True)]
torch.save([row[0] for row in rows], logits)
"""


@torch.no_grad()
def cpm_live_logits(directory: Path, model: CPMAnt, batch: Batch) -> tuple[Tensor, Tensor]:
    """What the form says and what it should say, (rows, V), over the columns in use, in float32 arithmetic."""
    used = _used(batch)
    return cpm_live.read(directory).float()(**batch.inputs)[0][used], model(**batch.inputs)[0][used]


@torch.no_grad()
def pt2_logits(directory: Path, model: CPMAnt, batch: Batch) -> tuple[Tensor, Tensor]:
    """The program in the dtype that it was exported in."""
    used = _used(batch)
    found = pt2.read(directory)(*(batch.inputs[name] for name in pt2.NAMES))[0]
    return found[used].float(), model(**batch.inputs)[0][used].float()


@torch.no_grad()
def huggingface_logits(directory: Path, model: CPMAnt, batch: Batch) -> tuple[Tensor, Tensor]:
    """Every row's words behind one prompt, all of them context, as `transformers` sees what it is given.

    Opened in a process of its own: it runs the directory's code, and writes a cache of it.
    """
    task, segment = _in_front(directory)
    texts = list(_texts(batch, model))
    with tempfile.TemporaryDirectory() as folder:
        words, logits = Path(folder) / "words.pt", Path(folder) / "logits.pt"
        torch.save(texts, words)
        own = "own" if huggingface.has_own_classes(directory) else "stock"
        _run([directory, words, logits, own], folder)
        found = torch.cat([row.float() for row in torch.load(logits, weights_only=True)])
    wanted = [model(**all_context(text, model.prompt_length, task, segment))[0][0] for text in texts]
    said = torch.cat([row[model.prompt_length :] for row in wanted])
    return found[:, : said.size(1)], said  # before release 5 the head has the prompts' rows too


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


def _in_front(directory: Path) -> tuple[int, int]:
    """The kind of prompt, and the text's segment."""
    config = json.loads((directory / "config.json").read_text())
    return config.get("task", hf.STOCK_TASK), config.get("segment", hf.STOCK_SEGMENT)


def _texts(batch: Batch, model: CPMAnt) -> Iterator[Tensor]:
    """The rows' words (T,) without the prompt; 0 would be padding."""
    count, prompt = model.input_embedding.weight.size(0), model.prompt_length
    for row, length in zip(batch.inputs["input"], batch.inputs["length"].tolist(), strict=True):
        if length > prompt:
            yield row[prompt:length].clamp(1, count - 1)


def _run(arguments: list[object], folder: str) -> None:
    script = [sys.executable, "-P", "-c", OPENED_BY_TRANSFORMERS, *map(str, arguments)]
    quiet = {"HF_HOME": folder, "HF_MODULES_CACHE": f"{folder}/modules", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(script, env=os.environ | quiet, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise PassError(f"transformers cannot open the form huggingface: {last}")


def _used(batch: Batch) -> Tensor:
    columns = torch.arange(batch.inputs["input"].size(1))
    return columns[None, :] < batch.inputs["length"][:, None]


def _config_dtype(directory: Path, model: CPMAnt) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, json.loads((directory / "config.json").read_text())["dtype"])
    return dtype


@dataclass(frozen=True)
class Form:
    """How a form is held against the model it was made of.

    Attributes:
        logits: what it says and what it should say, (columns in use, V) each.
        dtype: what its weights are stored in.
        exact: whether they are the model's own, and not rounded again.
        in_its_dtype: it computes in the dtype that it stores, and so must the model.
    """

    logits: Callable[[Path, CPMAnt, Batch], tuple[Tensor, Tensor]]
    dtype: Callable[[Path, CPMAnt], torch.dtype]
    exact: Callable[[Path], bool] = lambda directory: False
    in_its_dtype: bool = False


FORMS = {
    "cpm-live": Form(cpm_live_logits, lambda directory, _: cpm_live.read(directory).input_embedding.weight.dtype),
    "huggingface": Form(huggingface_logits, _config_dtype, huggingface.has_own_classes),
    "pt2": Form(pt2_logits, lambda _, model: model.input_embedding.weight.dtype, in_its_dtype=True),
}
