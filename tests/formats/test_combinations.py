"""Fifty random cuts: every form computes what the masked model computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sprunec
from sprunec.families.cpm_ant.huggingface_files import all_context
from sprunec.families.cpm_ant.huggingface_names import stock_obstacles
from sprunec.families.cpm_ant.modeling_sprunec import SprunecForCausalLM
from sprunec.families.cpm_ant.uniform import unevenness
from sprunec.passes.measuring.compare_format import tolerance
from tests.conftest import TINY, random_batch, tiny_config
from tests.helpers.cut_models import DTYPES, Case, cut_config, emitted, masked_model, random_case
from tests.helpers.live_loader import load_live

PROMPT, WORDS = TINY["prompt_length"], 9
EXACT = 1e-5


def words() -> Tensor:
    return torch.randint(1, TINY["vocab_size"], (WORDS,), generator=torch.Generator().manual_seed(5))


def limit(case: Case, wanted: Tensor) -> float:
    return tolerance(DTYPES[case.dtype], float(wanted.abs().max()))


@torch.no_grad()
def said_by_transformers(directory: Path, classes: Any) -> Tensor:
    model = classes.from_pretrained(directory).float().eval()
    return model(input_ids=words()[None], use_cache=False).logits[0, :, : TINY["vocab_size"]]


@pytest.mark.parametrize("seed", range(50))
@torch.no_grad()
def test_every_form_is_the_masked_model(seed: int, tmp_path: Path) -> None:
    case = random_case(seed)
    config, masked, batch = cut_config(case), masked_model(case), random_batch(2, 11, seed=seed)
    even = not unevenness(config)
    out = emitted(case, tmp_path, "huggingface", *(["cpm-live"] if even else []))
    wanted = masked(**batch)[0]
    used = torch.arange(wanted.size(1)) < batch["length"][:, None]
    assert (sprunec.load(tmp_path / "small").float()(**batch)[0] - wanted)[used].abs().max() < EXACT
    if even:
        live = load_live(out / "cpm-live").float()
        assert (live(**batch) - wanted)[used].abs().max() < limit(case, wanted)
    seen = masked(**all_context(words(), tiny_config(), 2, 2))[0][0, PROMPT:]
    if stock_obstacles(config):
        assert (said_by_transformers(out / "huggingface", SprunecForCausalLM) - seen).abs().max() < EXACT
    else:
        from transformers import CpmAntForCausalLM

        assert (said_by_transformers(out / "huggingface", CpmAntForCausalLM) - seen).abs().max() < limit(case, seen)


def test_the_combinations_cover_what_they_should() -> None:
    """Else a change of the draws could leave a form untested without a word."""
    configs = [cut_config(random_case(seed)) for seed in range(50)]
    assert sum(not unevenness(config) for config in configs) >= 10
    assert sum(not stock_obstacles(config) for config in configs) >= 5
    assert sum(any(layer.heads == 0 for layer in config.layers) for config in configs) >= 10
    assert {random_case(seed).dtype for seed in range(50)} == set(DTYPES)
