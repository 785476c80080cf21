"""Each form opened in a process of its own that cannot import sprunec, by what its users have: torch, transformers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sprunec.families.cpm_ant.huggingface_files import all_context
from sprunec.formats.huggingface import transformers_release
from sprunec.units import Kept
from tests.conftest import TINY, kept_layer, random_batch, tiny_config
from tests.helpers.cut_models import WITHOUT_SPRUNEC, Case, emitted, masked_model

DIMS, WIDE, PROMPT = tuple(range(TINY["dim_head"])), tuple(range(TINY["dim_ff"])), TINY["prompt_length"]
RAGGED = Case(
    Kept((kept_layer(None, None, (0, 7)), kept_layer((0, 1, 3), DIMS[:4], None), kept_layer((2,), DIMS, WIDE))), "fp32"
)
EVEN = Case(Kept(kept_layer((0, 2, 3), dims, WIDE[:30]) for dims in (DIMS[:5], DIMS[1:], DIMS[1:])), "fp32")
OPENED_ALONE = (
    WITHOUT_SPRUNEC
    + """
import torch
directory, given, found = sys.argv[1:]
given = torch.load(given, weights_only=True)
"""
)
BY_TRANSFORMERS = """
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True).eval()
with torch.no_grad():
    result = {"logits": model(input_ids=given["words"]).logits}
options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
for name, rows, cached in (("cached", "words", True), ("full", "words", False), ("padded", "padded", True)):
    mask = (given[rows] != 0).long()
    result[name] = model.generate(given[rows], attention_mask=mask, use_cache=cached, **options)
result["beams"] = model.generate(given["words"], num_beams=3, **options)
torch.save(result | {"class": [torch.tensor(list(type(model).__name__.encode()))]}, found)
"""
BY_TORCH = """
program = torch.export.load(directory + "/model.pt2").module()
torch.save([program(*rows)[0] for rows in given], found)
"""


def run_alone(script: str, directory: Path, given: object, folder: Path) -> object:
    torch.save(given, folder / "given.pt")
    command = [sys.executable, "-c", OPENED_ALONE + script, directory, folder / "given.pt", folder / "found.pt"]
    quiet = {"HF_HOME": str(folder / "cached"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([str(part) for part in command], check=True, cwd=folder, env=os.environ | quiet)
    return torch.load(folder / "found.pt", weights_only=True)


@torch.no_grad()
def greedy(case: Case, words: Tensor, steps: int = 6) -> Tensor:
    """A full forward of the masked model for every word; those it wrote are no context."""
    masked, given = masked_model(case), words.numel()
    for _ in range(steps):
        inputs = all_context(words, tiny_config(), 2, 2)
        inputs["context"][:, PROMPT + given :] = False
        words = torch.cat([words, masked(**inputs)[0][0, -1].argmax()[None]])
    return words


OLD = pytest.mark.skipif(
    transformers_release() < 5, reason="its own classes cannot write with a cache before release 5"
)


@pytest.mark.parametrize(
    ("case", "name"), [(RAGGED, "SprunecForCausalLM"), pytest.param(EVEN, "CpmAntForCausalLM", marks=OLD)]
)
def test_transformers_says_and_writes_what_the_masked_model_does(case: Case, name: str, tmp_path: Path) -> None:
    words = torch.randint(1, TINY["vocab_size"], (2, 7), generator=torch.Generator().manual_seed(3))
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), words], 1)
    directory = emitted(case, tmp_path, "huggingface") / "huggingface"
    found = run_alone(BY_TRANSFORMERS, directory, {"words": words, "padded": padded}, tmp_path)
    assert bytes(found["class"][0].tolist()).decode() == name
    for row, logits in zip(words, found["logits"], strict=True):
        with torch.no_grad():
            wanted = masked_model(case)(**all_context(row, tiny_config(), 2, 2))[0][0, PROMPT:]
        assert (logits - wanted).abs().max() < 1e-5
    wanted_words = torch.stack([greedy(case, row) for row in words])
    assert torch.equal(found["cached"], wanted_words)
    assert torch.equal(found["padded"][:, 3:], wanted_words)
    assert found["beams"].shape == wanted_words.shape
    if name == "SprunecForCausalLM":  # transformers' own classes write with all words as context when they recompute
        assert torch.equal(found["full"], wanted_words)


@pytest.mark.slow
def test_exported_program_takes_any_rows_and_columns(tmp_path: Path) -> None:
    directory = emitted(RAGGED, tmp_path, "pt2") / "pt2"
    batches = [random_batch(rows, text, seed=text) for rows, text in ((2, 11), (1, 30), (5, 2))]
    found = run_alone(BY_TORCH, directory, [list(batch.values()) for batch in batches], tmp_path)
    for batch, logits in zip(batches, found, strict=True):
        with torch.no_grad():
            wanted = masked_model(RAGGED)(**batch)[0]
        used = torch.arange(wanted.size(1)) < batch["length"][:, None]
        assert (logits - wanted)[used].abs().max() < 1e-5


def test_the_code_beside_the_weights_is_the_same_for_every_model(tmp_path: Path) -> None:
    """So that who trusts it once need not read it again."""
    first, second = (tmp_path / "first", tmp_path / "second")
    one, two = (emitted(case, folder, "huggingface") for case, folder in ((RAGGED, first), (RAGGED, second)))
    names = sorted(path.name for path in (one / "huggingface").glob("*.py"))
    assert names == ["blocks.py", "config.py", "model.py", "modeling_sprunec.py", "modules.py"]
    assert all((one / "huggingface" / n).read_bytes() == (two / "huggingface" / n).read_bytes() for n in names)
