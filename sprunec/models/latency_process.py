"""Time models of `transformers` side by side, as their users run them but for the weights, which are drawn: a script.

    python -m sprunec.models.latency_process SETTINGS

SETTINGS is JSON: `models`, directories with what their classes are built by, the first one what the others are
compared with; whether they are given the `whole` text behind a cache, too, or its new tokens alone; `batch`, `length`,
whether to time the `prefill`; `dtype`, `device`, `threads`. On stdout come lines of JSON: `[models done, models]`, and
last what was found: by phase, for each model the quotient of its time and of the first one's, round by round, and the
first one's seconds.

All models share the first one's memory, so that there is one in it however many are compared. That makes no
difference to what they read: each streams as many bytes as it has weights, and together they are too many for a cache.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from sprunec.families.huggingface.stock_model import parameters_on_meta
from sprunec.models.streamed import move_buffers

GROUP = 4  # models that are timed in turn with the first one; each has a cache of its own
STEPS = 4  # tokens in a row, of which the first finds what another model has left in the caches of the processor
LEAST_ROUNDS, MOST_ROUNDS, PREFILLS = 6, 40, 15
SECONDS = 30.0  # of a group, once it has had the least rounds
PAST = ("cache", "past_key_values")  # later releases have the first name
CLOSE = 0.004  # how well the median of quotients is to be known, as a share


class Timed:
    """A model and its texts so far.

    Args:
        shared: by name, the memory of weights; what is missing there is put there.
    """

    def __init__(self, directory: str, settings: dict[str, Any], shared: dict[str, Tensor]) -> None:
        self.device, dtype = torch.device(settings["device"]), getattr(torch, settings["dtype"])
        config = AutoConfig.from_pretrained(directory, trust_remote_code=True)
        with parameters_on_meta():
            self.model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=True).eval()
        made: dict[int, nn.Parameter] = {}  # a head may be the embedding
        for name, parameter in list(self.model.named_parameters(remove_duplicate=False)):
            owner, _, leaf = name.rpartition(".")
            if id(parameter) not in made:
                made[id(parameter)] = nn.Parameter(self._weight(name, parameter, shared), requires_grad=False)
            self.model.get_submodule(owner)._parameters[leaf] = made[id(parameter)]
        move_buffers(self.model, self.device)
        takes = inspect.signature(self.model.forward).parameters
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self._name = next(name for name in PAST if name in takes)
        self._ids = torch.zeros(settings["batch"], 1, dtype=torch.long, device=self.device)
        self._whole, self._length = settings["whole"], 0
        self._past: Any = None

    def _weight(self, name: str, wanted: Tensor, shared: dict[str, Tensor]) -> Tensor:
        size = wanted.numel()
        if name not in shared or shared[name].numel() < size:
            drawn = torch.empty(size, dtype=wanted.dtype, device=self.device)
            shared[name] = drawn.fill_(1.0) if wanted.dim() == 1 else drawn.normal_(0, 0.02)
        return shared[name][:size].view(wanted.shape)

    def prefill(self, length: int) -> float:
        """Begin texts of so many tokens; give the seconds."""
        self._past, self._length = None, length
        return self._run(self._ids.expand(-1, length), **self._last)

    def decode(self) -> float:
        """Go on by a token; give the seconds of it."""
        self._length += 1
        return self._run(self._ids.expand(-1, self._length if self._whole else 1))

    def forget(self) -> None:
        self._past = None

    def _run(self, ids: Tensor, **more: Any) -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            output = self.model(input_ids=ids, use_cache=True, **{self._name: self._past}, **more)
            float(output.logits[0, -1, 0])  # on every device, a number is there only once the work is done
        self._past = next(output[name] for name in PAST if name in output)
        return time.perf_counter() - began


def rounds(models: Sequence[Timed], run: Callable[[Timed], float], most: int) -> Iterator[list[float]]:
    """Time all models in turn, until it is well known how they compare; one round does not count."""
    found: list[list[float]] = []
    began = time.perf_counter()
    for count in range(most + 1):
        times = [run(model) for model in models]
        if count:
            found.append(times)
            yield times
        if len(found) >= min(LEAST_ROUNDS, most):
            known = all(close(each) for each in zip(*quotients(found), strict=True))
            if known or time.perf_counter() - began > SECONDS:
                return


def quotients(found: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[each / times[0] for each in times[1:]] for times in found]


def close(values: Sequence[float]) -> bool:
    """Tell whether a median is well known: its notch (McGill et al. 1978)."""
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return bool(1.57 * (high - low) / len(values) ** 0.5 <= CLOSE * middle)


def decoded(model: Timed) -> float:
    return median([model.decode() for _ in range(STEPS)][1:])


def measure(settings: dict[str, Any], tell: Callable[[int, int], None]) -> dict[str, Any]:
    shared: dict[str, Tensor] = {}
    directories, length = settings["models"], settings["length"]
    most = max(1, min(MOST_ROUNDS, (length - 1) // STEPS - 1))
    start = max(1, length - STEPS * (most + 1))
    first = Timed(directories[0], settings, shared)
    phases = ("decode", "prefill") if settings["prefill"] else ("decode",)
    found: dict[str, Any] = {phase: {"quotients": [], "seconds": []} for phase in phases}
    for begin in range(1, len(directories), GROUP):
        models = [first, *(Timed(each, settings, shared) for each in directories[begin : begin + GROUP])]
        ways: dict[str, Any] = {"decode": (decoded, most), "prefill": (lambda model: model.prefill(length), PREFILLS)}
        for phase in phases[::-1]:
            if phase == "decode":
                for model in models:
                    model.prefill(start)
            times = list(rounds(models, *ways[phase]))
            found[phase]["quotients"] += map(list, zip(*quotients(times), strict=True))
            found[phase]["seconds"] += [each[0] for each in times]
        for model in models:
            model.forget()
        tell(min(begin + GROUP, len(directories)), len(directories))
    return found


def main() -> None:
    """Do what the command line asks for; whatever prints meanwhile prints on stderr."""
    told = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    settings = json.loads(sys.argv[1])
    torch.manual_seed(0)
    torch.set_num_threads(settings["threads"])
    print(json.dumps(measure(settings, lambda done, all_: print(json.dumps([done, all_]), file=told))), file=told)


if __name__ == "__main__":
    main()
