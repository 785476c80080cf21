"""Small models cut every which way, as the store holds them, and the masked ones they must compute the same as."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sprunec.families.base_config import everything
from sprunec.families.cpm_ant.blocks import example_inputs
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.model_directory import save_model
from sprunec.formats.huggingface import transformers_release
from sprunec.models.meta_models import empty_model
from sprunec.passes import emit
from sprunec.passes.job import Job
from sprunec.rewrite.gating import Gates, insert_gates
from sprunec.rewrite.recipe import make_recipe
from sprunec.rewrite.trace import TracedBlock, trace_blocks
from sprunec.units import Kept
from tests.conftest import TINY, kept_layer, tiny_config, tiny_model

LAYERS, HEADS, DIMS, WIDE = (TINY[key] for key in ("num_layers", "num_heads", "dim_head", "dim_ff"))
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
OPTIONS = {"dtype": "keep", "transformers": transformers_release(), "task": 2}


WITHOUT_SPRUNEC = """
import sys
sys.modules["sprunec"] = None
try:
    import sprunec
except ImportError:
    pass
else:
    raise SystemExit("sprunec can be imported")
"""  # the beginning of a program that opens what was emitted


@dataclass(frozen=True)
class Case:
    """What is kept, and the dtype that the weights are stored in."""

    kept: Kept
    dtype: str


def random_case(seed: int, even: bool | None = None) -> Case:
    """Any combination of absent sublayers, ragged or tied heads, dims of heads and of feed-forwards, and dtypes."""
    draw = random.Random(seed)
    even = draw.random() < 0.5 if even is None else even
    absent = draw.random() < 0.5
    sizes = [draw.randint(1, HEADS), draw.randint(2, DIMS), draw.randint(1, WIDE)]
    tied = _some(draw, HEADS, sizes[0])
    layers = []
    for _ in range(LAYERS):
        if not even:
            sizes = [draw.randint(1, HEADS), draw.randint(2, DIMS), draw.randint(1, WIDE)]
        heads = tied if even else _some(draw, HEADS, sizes[0])
        dims, wide = _some(draw, DIMS, sizes[1]), _some(draw, WIDE, sizes[2])
        gone = (absent and draw.random() < 0.4, absent and draw.random() < 0.4)
        layers.append(kept_layer(*((None, None) if gone[0] else (heads, dims)), None if gone[1] else wide))
    return Case(Kept(layers), draw.choice(list(DTYPES)))


def _some(draw: random.Random, total: int, count: int) -> tuple[int, ...]:
    return tuple(sorted(draw.sample(range(total), count)))


@cache
def _gated(dtype: str) -> tuple[nn.Module, Gates]:
    """Traced once for all cases: tracing is what takes time here."""
    model = tiny_model().to(DTYPES[dtype]).float()
    units = ("attention", "feed_forward", "head", "dim_head", "dim_ff")
    return model, insert_gates(model, trace_blocks(model, example_inputs(tiny_config())), units)


@cache
def _blocks() -> tuple[TracedBlock, ...]:
    config = tiny_config()
    return trace_blocks(empty_model(config), example_inputs(config))


def masked_model(case: Case) -> nn.Module:
    """The whole model with its weights rounded as stored, masks as multiplications, in float32 arithmetic.

    The next case of the same dtype is put into the same model.
    """
    model, gates = _gated(case.dtype)
    for (index, unit), size in gates.sizes.items():
        kept = torch.tensor(case.kept.units(index, unit), dtype=torch.long)
        gates.set(index, unit, torch.zeros(size).index_fill(0, kept, 1.0))
    return model.eval()


def cut_config(case: Case, **changes: Any) -> ModelConfig:
    config = tiny_config(**changes)
    return config.cut(everything(config), case.kept)


def emitted(case: Case, directory: Path, *formats: str, tied: bool = True, **options: Any) -> Path:
    """A directory with the forms that the emit pass writes of the cut model, its head tied to the embedding or not."""
    head = {} if tied else {"tie_word_embeddings": False}
    config, model = tiny_config(**head), tiny_model(**head).to(DTYPES[case.dtype])
    source, small = directory / "source", directory / "small"
    save_model(source, config, everything(config), model.state_dict())
    save_model(small, cut_config(case, **head), case.kept, make_recipe(_blocks(), case.kept).cut(model.state_dict()))
    out = directory / "out"
    out.mkdir(parents=True)
    files = {"vocab": options.pop("vocab")} if "vocab" in options else {}
    options = emit.EmitOptions(formats=formats, details=OPTIONS | options)
    emit.run(Job(options, {"model": small, "source": source}, files, out, "cpu", print))
    return out
