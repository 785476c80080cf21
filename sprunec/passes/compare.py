"""Hold the small model against the masked one: the same tokens in, the worst difference of any logit out.

The masked model is the one before the cut with its masks as multiplications; it knows no recipe. An emitted model is
opened from disk both ways that users open it: built from its config, and through its own model.py.

Block by block, so that models of any size are compared in the memory of one block of each. The small model goes its own
way to the logits; besides, every block of it is given what the masked one's is given, which shows where they part.
A model that decodes is also run with its own past keys and values, a few columns one by one, against itself in one go.
The stored weights are compared in float64 arithmetic, where rounding cannot hide a wrong bias column or divisor, and
once more in float32, where sums over fewer terms round differently: an error there grows with the logits, so its
tolerance does too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sprunec.data.batches import Batch
from sprunec.errors import ComparisonError
from sprunec.model.checkpoint import empty_model, open_model_tensors, read_config, read_kept
from sprunec.model.config import ModelConfig, local
from sprunec.model.frame import CPMAnt
from sprunec.model.tensors import Tensors, open_tensors
from sprunec.model.walk import BIAS, ENTRANCE, Decoding, Inputs, Walk, exit_of, largest
from sprunec.passes.bench import config_of, place_of, traced
from sprunec.passes.job import Job
from sprunec.passes.looks import look
from sprunec.rewrite.gating import mask

TOLERANCE = 1e-5
BATCHES = 4
STATES = 2**25
BIASES = 2**28


def run(job: Job) -> dict[str, Any]:
    config, device = config_of(job, "masked"), place_of(job).device
    home = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
    models = list(_models(job, config))
    batches = list(affordable(look(job, config, BATCHES), config))
    single, exact = (
        Comparison(*(Walk(model, tensors, inputs, dtype, place) for model, tensors in models))
        for dtype, place in ((torch.float32, device), (torch.float64, home))
        for inputs in [[batch.to(place).inputs for batch in batches]]
    )
    compare(single, exact)
    worst = max(range(len(exact.local)), key=exact.local.__getitem__)
    metrics = {
        "max_abs_difference": max(exact.difference, exact.cached),
        "tolerance": TOLERANCE,
        "tokens": exact.tokens,
        "float32_difference": single.difference,
        "float32_tolerance": TOLERANCE * max(1.0, single.largest_logit),
        "largest_logit": single.largest_logit,
        "worst_block": worst,
        "worst_block_difference": exact.local[worst],
        "worst_block_tolerance": TOLERANCE * max(1.0, exact.largest_state),
    }
    for kind in ("", "float32_", "worst_block_"):
        if not metrics[f"{kind}difference" if kind else "max_abs_difference"] <= metrics[f"{kind}tolerance"]:
            raise ComparisonError(metrics)
    return metrics


@torch.no_grad()
def compare(single: Comparison, exact: Comparison) -> None:
    """Both through one part after the other, so that each part is read from disk once."""
    single.enter(decode=False)
    exact.enter(decode=True)
    for index in range(len(exact.local)):
        single.block(index)
        exact.block(index)
    single.leave()
    exact.leave()


def _models(job: Job, config: ModelConfig) -> Iterator[tuple[CPMAnt, Tensors]]:
    """The masked one, then the small one as it may be opened: on the meta device, with their tensors' places."""
    before, after = read_kept(job.inputs["masked"]), read_kept(job.inputs["masks"])
    masked = empty_model(config)
    mask(masked, traced(masked, config), [local(b, a) for b, a in zip(before, after, strict=True)])
    yield masked, open_model_tensors(job.inputs["masked"])
    directory = job.inputs["small"]
    emitted = directory / "sprunec"
    if not emitted.exists():
        yield empty_model(read_config(directory)), open_model_tensors(directory)
        return
    yield empty_model(read_config(emitted)), open_tensors(emitted)
    yield run_code(emitted).empty(emitted), open_tensors(emitted)


def run_code(directory: Path) -> Any:
    """The module of a model.py that this run has just written; a stranger's is never executed.

    Not imported: that would run, or leave, a compiled file that no manifest knows.
    """
    module, path = ModuleType("emitted_model"), directory / "model.py"
    module.__file__ = str(path)
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    return module


def affordable(batches: Iterator[Batch], config: ModelConfig) -> Iterator[Batch]:
    """Rows of the batches, as many as their hidden states and one of the bias tables leave room for; one at least."""
    left = STATES
    for batch in batches:
        rows, columns = batch.targets.shape
        rows = min(rows, left // (columns * max(config.dim_model, config.num_heads * columns)))
        if rows or left == STATES:
            rows = max(rows, 1)
            left -= rows * columns * max(config.dim_model, config.num_heads * columns)
            yield Batch({name: tensor[:rows] for name, tensor in batch.inputs.items()}, batch.targets[:rows])


class Comparison:
    """A masked model and small ones on their way through the same batches, side by side.

    Attributes:
        difference: the largest of any logit.
        local: by block, the largest of any hidden state that comes out where the masked model's goes in.
        cached: the largest between decoding and a forward of the same small model.
    """

    def __init__(self, masked: Walk, *smalls: Walk) -> None:
        self.masked, self.smalls = masked, smalls
        self.difference = self.cached = self.largest_logit = self.largest_state = 0.0
        self.tokens, self.local = 0, [0.0] * len(masked.model.encoder.layers)
        self._decodings: list[Decoding] = []
        self._shared: list[bool] = []
        self._biases: list[Tensor] = []

    def enter(self, decode: bool) -> None:
        for walk in self._all():
            walk.enter()
        numbers = range(len(self.masked.batches))
        with self.masked.holding(BIAS):
            heads = self.masked.model.position_bias.relative_attention_bias.size(1)
            shapes = [batch["segment"].shape for batch in self.masked.batches]
            size = sum(rows * heads * columns**2 * self.masked.dtype.itemsize for rows, columns in shapes)
            self._biases = [self.masked.bias(number) for number in numbers if size <= BIASES]
        for small in self.smalls:
            with self.masked.holding(BIAS), small.holding(*ENTRANCE, BIAS):
                self._shared.append(all(torch.equal(self._bias(number), small.bias(number)) for number in numbers))
                if decode:
                    self._decodings.append(Decoding(small.model, small.batches[0]))

    def _bias(self, number: int) -> Tensor:
        """Of the masked model, whose table is held; made anew for every block where there is no room for all."""
        return self._biases[number] if self._biases else self.masked.bias(number)

    def block(self, index: int) -> None:
        name = f"encoder.layers.{index}"
        with ExitStack() as stack:
            for walk in self._all():
                stack.enter_context(walk.holding(name, BIAS))
            for number in range(len(self.masked.batches)):
                self._batch(index, number)
            for small, decoding in zip(self.smalls, self._decodings, strict=False):
                decoding.through(index, small.layer(index))

    def _batch(self, index: int, number: int) -> None:
        masked = self.masked
        given, bias = masked.hidden[number], self._bias(number)
        masked.hidden[number] = wanted = masked.layer(index)(given, bias)
        used = _used(masked.batches[number])
        self.largest_state = max(self.largest_state, float(wanted[used].abs().max()))
        for place, small in enumerate(self.smalls):
            its, layer = bias if self._shared[place] else small.bias(number), small.layer(index)
            small.hidden[number] = layer(small.hidden[number], its)
            if place == 0:
                gap = layer(given, its)[used] - wanted[used]
                self.local[index] = max(self.local[index], largest(gap))

    def leave(self) -> None:
        with ExitStack() as stack:
            for walk in self._all():
                stack.enter_context(walk.holding(*exit_of(walk.model)))
            for number, batch in enumerate(self.masked.batches):
                used = _used(batch)
                self.tokens += int(used.sum())
                for wanted, *found in zip(*(walk.logits(number, used) for walk in self._all()), strict=True):
                    self.largest_logit = max(self.largest_logit, largest(wanted))
                    self.difference = max(self.difference, *(largest(logits - wanted) for logits in found))
            pairs = zip(self.smalls, self._decodings, strict=False)
            self.cached = max((decoding.difference(small.model) for small, decoding in pairs), default=0.0)

    def _all(self) -> tuple[Walk, ...]:
        return (self.masked, *self.smalls)


def _used(batch: Inputs) -> Tensor:
    """(B, N): not padding."""
    return batch["length"][:, None] > torch.arange(batch["segment"].size(1), device=batch["length"].device)
