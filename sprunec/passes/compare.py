"""Hold the small model against the masked one: the same tokens in, the worst difference of any logit out.

The masked model is the one before the cut with its masks as multiplications; it knows no recipe. An emitted model is
opened from disk both ways that users open it: built from its config, and through its own model.py.

A model that decodes is also run with its own past keys and values, a few columns one by one, against itself in one go.
The stored weights are compared in float64 arithmetic, where rounding cannot hide a wrong bias column or divisor, and
once more in float32, where sums over fewer terms round differently: an error there grows with the logits, so its
tolerance does too.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sprunec.data.batches import PROMPT_TASK, TEXT_SEGMENT, Batch
from sprunec.engines.device import Place
from sprunec.errors import ComparisonError
from sprunec.model.checkpoint import read_kept
from sprunec.model.config import ModelConfig, local
from sprunec.passes.bench import config_of, open_data, open_model, place_of, traced
from sprunec.passes.job import Job
from sprunec.rewrite.gating import mask

TOLERANCE = 1e-5
BATCHES = 4
CACHED_STEPS = 4


def run(job: Job) -> dict[str, Any]:
    place = Place(place_of(job).device, torch.float32)
    config = config_of(job, "masked")
    masked = open_model(job.inputs["masked"], place)
    before, after = read_kept(job.inputs["masked"]), read_kept(job.inputs["masks"])
    mask(masked, traced(masked, config), [local(b, a) for b, a in zip(before, after, strict=True)])
    smalls = list(_small_models(job.inputs["small"], place))
    batches = list(_batches(job, config))
    single = _worst(masked, smalls, batches)
    home = Place(torch.device("cpu"), torch.float64) if place.device.type == "mps" else place  # MPS has no float64
    models = [model.to(home.device).double() for model in (masked, *smalls)]
    exact = _worst(models[0], models[1:], batches)
    cached = max((_cached_difference(model, batches[0]) for model in models[1:] if _decodes(model)), default=0.0)
    metrics = {
        "max_abs_difference": max(exact.difference, cached),
        "tolerance": TOLERANCE,
        "tokens": exact.tokens,
        "float32_difference": single.difference,
        "float32_tolerance": TOLERANCE * max(1.0, single.largest_logit),
        "largest_logit": single.largest_logit,
    }
    limits = (("max_abs_difference", "tolerance"), ("float32_difference", "float32_tolerance"))
    if not all(metrics[difference] <= metrics[limit] for difference, limit in limits):
        raise ComparisonError(metrics)
    return metrics


def _decodes(model: nn.Module) -> bool:
    return hasattr(model, "inference")


@torch.no_grad()
def _cached_difference(model: nn.Module, batch: Batch) -> float:
    """How far the last columns, decoded one by one with past keys and values, are from one full forward.

    The longest row is taken for a text to go on writing: a column that was visible from before would make them differ.
    """
    row, prompt = int(batch.inputs["length"].argmax()), int(model.prompt_length)  # type: ignore[arg-type]
    columns = int(batch.inputs["length"][row])
    inputs = {name: tensor[row : row + 1, ..., :columns] for name, tensor in batch.inputs.items() if tensor.dim() == 2}
    inputs |= {"length": torch.tensor([columns]), "context": (torch.arange(columns) < prompt)[None]}
    inputs = {name: tensor.to(_device(model)) for name, tensor in inputs.items()}
    logits = model(**inputs)[0]
    worst, past, start = 0.0, None, 0
    for end in range(max(columns - CACHED_STEPS, prompt + 1), columns + 1):
        seen = {name: inputs[name][:, :end] for name in ("context", "segment", "span")}
        length = inputs["length"] - columns + end - prompt
        step, _, past = model.inference(  # type: ignore[operator]
            inputs["input"][:, start:end], length, position=None, past_key_values=past, **seen
        )
        worst = max(worst, _largest(step - logits[:, start:end]))
        start = end
    return worst


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _largest(difference: Tensor) -> float:
    """A NaN must not pass as "no difference"."""
    worst = float(difference.abs().max())
    return worst if worst == worst else float("inf")


@dataclass(frozen=True)
class Worst:
    difference: float
    largest_logit: float
    tokens: int


@torch.no_grad()
def _worst(masked: nn.Module, smalls: list[nn.Module], batches: list[Batch]) -> Worst:
    """The largest difference over all batches and all ways of opening the small model."""
    difference, largest, tokens = 0.0, 0.0, 0
    for batch in (each.to(_device(masked)) for each in batches):
        used = batch.inputs["length"][:, None] > torch.arange(batch.targets.size(1), device=batch.targets.device)
        wanted = masked.eval()(**batch.inputs)[0][used]
        for small in smalls:
            difference = max(difference, _largest(small.eval()(**batch.inputs)[0][used] - wanted))
        largest = max(largest, float(wanted.abs().max()))
        tokens += int(used.sum())
    return Worst(difference, largest, tokens)


def _small_models(directory: Path, place: Place) -> Iterator[nn.Module]:
    emitted = directory / "sprunec"
    yield open_model(emitted if emitted.exists() else directory, place)
    if emitted.exists():
        yield through_its_own_code(emitted).float().to(place.device)


def through_its_own_code(directory: Path) -> nn.Module:
    """Opens a model.py that this run has just written; a stranger's is never executed."""
    spec = importlib.util.spec_from_file_location("emitted_model", directory / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model: nn.Module = module.load(directory)
    return model


def _batches(job: Job, config: ModelConfig) -> Iterator[Batch]:
    """Held-out text where the plan has any, else words drawn at random."""
    if "data" in job.inputs:
        return islice(open_data(job, config).held_out_batches(), BATCHES)
    return iter([random_batch(config)])


def random_batch(config: ModelConfig, rows: int = 2, text: int = 64) -> Batch:
    draw = torch.Generator().manual_seed(0)
    prompt, columns = config.prompt_length, config.prompt_length + text
    words = torch.randint(config.vocab_size, (rows, text), generator=draw)
    is_text = torch.arange(columns) >= prompt
    task, kind = min(PROMPT_TASK, config.prompt_types - 1), min(TEXT_SEGMENT, config.segment_types - 1)
    inputs = {
        "input": torch.cat([(torch.arange(prompt) + task * prompt).expand(rows, -1), words], 1),
        "length": torch.full((rows,), columns),
        "context": (~is_text).expand(rows, -1),
        "segment": (is_text * kind).expand(rows, -1),
        "span": torch.zeros(rows, columns, dtype=torch.long),
    }
    return Batch(inputs, inputs["input"])
