"""Hold the small model against the masked one: the same tokens in, the worst difference of any logit out.

The masked model is the one before the cut with its masks as multiplications; it knows no recipe. An emitted model is
opened from disk both ways that users open it: built from its config, and through its own model.py.

Block by block and tensor by tensor, so that models of any size are compared in the memory of a few tensors. The small
model goes its own way to the logits; besides, every block of it is given what the masked one's is given, which shows
where they part. The stored weights are compared in float64 arithmetic, where rounding cannot hide a wrong bias column
or divisor, and once more in float32, where sums over fewer terms round differently: how much of that is no fault is
measured on the masked model itself, by its own float32 against its own float64. In float32 every small model is also
run with its own past keys and values, column by column, against itself in one go.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sprunec.checkpoint.reader import Tensors, open_tensors
from sprunec.data.batches import Batch
from sprunec.durable import read_file
from sprunec.errors import ComparisonError, PassError
from sprunec.families.cpm_ant.config import ModelConfig, local
from sprunec.families.cpm_ant.model import CPMAnt
from sprunec.families.cpm_ant.walk import BIAS, Decoding, Walk, in_use, largest
from sprunec.families.model_directory import empty_model, open_model_tensors, read_config, read_kept
from sprunec.passes.bench import config_of, place_of, traced
from sprunec.passes.job import Job
from sprunec.passes.looks import NOISES, OPERATIONS, PER_PARAMETER, TOLERANCE, looks
from sprunec.rewrite.gating import mask

FINER = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
LOGITS = 2**22  # numbers at a time
FEW = 2.5  # times what a comparison may take
DECODED = 12  # columns of text


def run(job: Job) -> dict[str, Any]:
    """Raises ComparisonError where the two differ by more than the arithmetic explains."""
    config, device = config_of(job, "masked"), place_of(job).device
    models = list(_models(job, config))
    found = []
    for batches in looks(job, config):
        with few_threads(config, sum(batch.targets.numel() for batch in batches)):
            found.append(compare(models, batches, device))
    worst = max(found, key=lambda metrics: metrics["worst_block_difference"])
    merged = {key: max(metrics[key] for metrics in found) for key in worst if not key.startswith("worst_block")}
    merged["tokens"] = sum(metrics["tokens"] for metrics in found)
    metrics = {**worst, **merged}
    for kind in ("", "float32_", "worst_block_"):
        if not metrics[f"{kind}difference" if kind else "max_abs_difference"] <= metrics[f"{kind}tolerance"]:
            raise ComparisonError(metrics)
    return metrics


@contextmanager
def few_threads(config: ModelConfig, tokens: int) -> Iterator[None]:
    """Use one thread where that takes seconds.

    The products are small, and threads that wait for each other after every one of them make it minutes as soon as
    something else runs on the machine.
    """
    before = torch.get_num_threads()
    if PER_PARAMETER * config.parameters() * tokens < FEW * OPERATIONS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def compare(models: list[tuple[CPMAnt, Tensors]], batches: list[Batch], device: torch.device) -> dict[str, Any]:
    """All models on the same batches, in float64 and in float32; the masked one comes first.

    Raises:
        PassError: the masked model's own logits are not finite.
    """
    home = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
    single, exact = (
        Comparison([Walk(model, tensors, inputs, dtype, place) for model, tensors in models])
        for dtype, place in ((torch.float32, device), (torch.float64, home))
        for inputs in [[batch.to(place).inputs for batch in batches]]
    )
    single.enter(decode=True)
    exact.enter(decode=False)
    for index in range(len(exact.local)):
        single.block(index, local=False)
        exact.block(index, local=True)
    noise = leave(single, exact)
    if not math.isfinite(noise + exact.largest_logit):
        arithmetic = "float32" if math.isfinite(exact.largest_logit) else "float64"
        what = f"the masked model's own logits are not finite in {arithmetic} arithmetic"
        raise PassError(f"{what}, so nothing can be compared with them; its weights are too large")
    worst = max(range(len(exact.local)), key=exact.local.__getitem__)
    return {
        "max_abs_difference": exact.difference,
        "tolerance": max(TOLERANCE, NOISES * noise * FINER),
        "tokens": exact.tokens,
        "float32_difference": single.difference,
        "float32_tolerance": max(TOLERANCE * max(1.0, exact.largest_logit), NOISES * noise),
        "float32_noise": noise,
        "largest_logit": exact.largest_logit,
        "worst_block": worst,
        "worst_block_difference": exact.local[worst],
        "worst_block_tolerance": TOLERANCE * max(1.0, exact.largest_state),
    }


def leave(single: Comparison, exact: Comparison) -> float:
    """Through the head, a few words at a time; the masked model's float32 against its float64."""
    noise, rows = 0.0, exact.behind(0).size(0)
    exact.tokens = single.tokens = rows
    words = exact.walks[0].words
    step = max(1, LOGITS // max(rows, exact.walks[0].width))
    for first in range(0, words, step):
        part = range(first, min(first + step, words))
        noise = max(noise, largest(exact.logits(part) - single.logits(part).to(exact.walks[0].device)))
    return noise


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
    exec(compile(read_file(path), str(path), "exec"), module.__dict__)
    return module


class Comparison:
    """A masked model and small ones on their way through the same batches, side by side, in one arithmetic.

    Args:
        walks: the masked model's first.

    Attributes:
        difference: the largest of any logit, of those of decoding, too.
        local: by block, the largest of any hidden state that comes out where the masked model's goes in.
    """

    def __init__(self, walks: list[Walk]) -> None:
        self.walks, self.masked, self.smalls = walks, walks[0], walks[1:]
        self.difference = self.largest_logit = self.largest_state = 0.0
        self.tokens, self.local = 0, [0.0] * len(self.masked.model.encoder.layers)
        self._decodings: list[Decoding] = []
        self._biases: list[list[Tensor]] = []

    def enter(self, decode: bool) -> None:
        for walk in self.walks:
            walk.enter()
            with walk.holding(BIAS):
                biases = [walk.bias(number) for number in range(len(walk.batches))]
                same = walk is not self.masked and all(map(torch.equal, biases, self._biases[0]))
                self._biases.append(self._biases[0] if same else biases)
                if decode and walk is not self.masked:
                    with walk.entrance():
                        self._decodings.append(Decoding(walk.model, walk.batches[0], text=DECODED))

    def block(self, index: int, local: bool) -> None:
        given = self.masked.hidden
        with self.masked.holding(f"encoder.layers.{index}"):
            layer = self.masked.layer(index)
            wanted = [layer(hidden, bias) for hidden, bias in zip(given, self._biases[0], strict=True)]
        for number, small in enumerate(self.smalls):
            with small.holding(f"encoder.layers.{index}"):
                layer, biases = small.layer(index), self._biases[number + 1]
                if local and number == 0:
                    small.hidden = self._both(index, given, wanted, biases)
                else:
                    small.hidden = [layer(hidden, bias) for hidden, bias in zip(small.hidden, biases, strict=True)]
                for decoding in self._decodings[number : number + 1]:
                    decoding.through(index, layer)
        self.masked.hidden = wanted

    def _both(self, index: int, given: list[Tensor], wanted: list[Tensor], biases: list[Tensor]) -> list[Tensor]:
        """The first small model's block on its own states and, in the same call, on the masked one's."""
        small, found = self.smalls[0], []
        for number, (hidden, bias) in enumerate(zip(small.hidden, biases, strict=True)):
            states = torch.cat([hidden, given[number]])
            own, its = small.layer(index)(states, bias.repeat(2, 1, 1, 1)).chunk(2)
            used = in_use(small.batches[number])
            self.largest_state = max(self.largest_state, float(wanted[number][used].abs().max()))
            self.local[index] = max(self.local[index], largest(its[used] - wanted[number][used]))
            found.append(own)
        return found

    def behind(self, number: int) -> Tensor:
        """(rows, D): a model's hidden states behind the last block, of the columns in use."""
        walk = self.walks[number]
        pairs = zip(walk.hidden, walk.batches, strict=True)
        return torch.cat([hidden[in_use(batch)] for hidden, batch in pairs])

    def logits(self, words: range) -> Tensor:
        """The masked model's (rows, words); the small ones' are held against them."""
        wanted = self.masked.leave(self.behind(0), words)
        self.largest_logit = max(self.largest_logit, largest(wanted))
        for number, small in enumerate(self.smalls):
            states = [self.behind(number + 1)]
            states += [part for decoding in self._decodings[number : number + 1] for part in decoding.both()]
            found, *decoded = small.leave(torch.cat(states), words).split([len(each) for each in states])
            self.difference = max(self.difference, largest(found - wanted))
            if decoded:
                self.difference = max(self.difference, largest(decoded[0] - decoded[1]))
        return wanted
