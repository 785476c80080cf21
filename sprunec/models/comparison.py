"""Models side by side on the same tokens: how far the small ones are from the masked one, and what may be.

Block by block and tensor by tensor, so that models of any size are compared in the memory of a few tensors. The small
model goes its own way to the logits; besides, every block of it is given what the masked one's is given, which shows
where they part. The stored weights are compared in float64 arithmetic, where rounding cannot hide a wrong bias column
or divisor, and once more in float32, where sums over fewer terms round differently: how much of that is no fault is
measured on the masked model itself, by its own float32 against its own float64. In float64 every small model is also
run with its own past keys and values, position by position, against itself in one go: products of a single row round
differently, and a token with large activations makes ten times of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sprunec.checkpoint.reader import Tensors
from sprunec.data.affordable import OPERATIONS, PER_PARAMETER
from sprunec.data.batches import in_use
from sprunec.engines.checkpoints import Saves
from sprunec.errors import PassError
from sprunec.families.base import Family, Given, Inputs
from sprunec.models.decoding import Decoding
from sprunec.models.streamed import LOGITS, Streamed, largest

TOLERANCE = 1e-5
NOISES = 4.0  # a difference may be so many times the arithmetic's own noise
FINER = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
FEW = 2.5  # times what a comparison may take
DECODED = 12  # tokens of a text


@contextmanager
def few_threads(parameters: int, tokens: int) -> Iterator[None]:
    """Use one thread where that takes seconds.

    The products are small, and threads that wait for each other after every one of them make it minutes as soon as
    something else runs on the machine.
    """
    before = torch.get_num_threads()
    if PER_PARAMETER * parameters * tokens < FEW * OPERATIONS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def compare(
    family: Family,
    models: Sequence[tuple[nn.Module, Tensors]],
    batches: Sequence[Inputs],
    device: torch.device,
    way: Way | None = None,
) -> dict[str, Any]:
    """Run all models on the same batches, in float64 and in float32; the masked one comes first.

    Args:
        way: told of every block; None: the way is not saved.

    Raises:
        PassError: the masked model's own logits are not finite.
    """
    home = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
    single, exact = (
        Comparison([Streamed(family, model, tensors, inputs, dtype, place) for model, tensors in models], decode)
        for dtype, place, decode in ((torch.float32, device, False), (torch.float64, home, True))
        for inputs in [[{name: tensor.to(place) for name, tensor in batch.items()} for batch in batches]]
    )
    way = way or Way()
    for index in range(way.begin(single, exact), len(exact.local)):
        single.block(index, local=False)
        exact.block(index, local=True)
        way.block_done(index, single, exact)
    noise = _leave(single, exact)
    if not math.isfinite(noise + exact.largest_logit):
        arithmetic = "float32" if math.isfinite(exact.largest_logit) else "float64"
        what = f"the masked model's own logits are not finite in {arithmetic} arithmetic"
        raise PassError(f"{what}, so nothing can be compared with them; its weights are too large")
    worst = max(range(len(exact.local)), key=exact.local.__getitem__)
    return {
        "max_abs_difference": exact.difference,
        "tolerance": max(TOLERANCE, NOISES * noise * FINER),
        "tokens": exact.masked.used().size(0),
        "float32_difference": single.difference,
        "float32_tolerance": max(TOLERANCE * max(1.0, exact.largest_logit), NOISES * noise),
        "float32_noise": noise,
        "largest_logit": exact.largest_logit,
        "worst_block": worst,
        "worst_block_difference": exact.local[worst],
        "worst_block_tolerance": TOLERANCE * max(1.0, exact.largest_state),
    }


@dataclass(frozen=True)
class Way:
    """Where comparisons are saved behind every block, and who is told.

    Attributes:
        before: what was found on other batches; a save is of these batches only if that is the same.
        tell: takes how many blocks are done, of how many.
    """

    saves: Saves | None = None
    before: Any = None
    tell: Callable[[int, int], None] = lambda done, total: None

    def begin(self, *comparisons: Comparison) -> int:
        """Go on from the last save; count the blocks that are done."""
        saved = self.saves.latest() if self.saves is not None else None
        if saved is None or saved["before"] != self.before:
            return 0
        for comparison, state in zip(comparisons, saved["comparisons"], strict=True):
            comparison.load(state)
        done: int = saved["done"]
        return done

    def block_done(self, index: int, *comparisons: Comparison) -> None:
        total = len(comparisons[0].local)
        self.tell(index + 1, total)
        if self.saves is not None:
            state = {"done": index + 1, "before": self.before, "comparisons": [each.state() for each in comparisons]}
            self.saves.after_step(index + 1, total, lambda: state)


def _leave(single: Comparison, exact: Comparison) -> float:
    """Go through the head, a few tokens at a time -> the masked model's float32 against its float64."""
    noise, tokens = 0.0, exact.masked.tokens
    step = max(1, LOGITS // max(exact.masked.used().shape))
    for first in range(0, tokens, step):
        part = range(first, min(first + step, tokens))
        noise = max(noise, largest(exact.logits(part) - single.logits(part).to(exact.masked.device)))
    return noise


def _twice(tensor: Tensor, rows: int) -> Tensor:
    """Repeat what blocks are given for each row, or for each of its heads; what is for all rows alike serves more."""
    return tensor.repeat(2, *[1] * (tensor.dim() - 1)) if len(tensor) % rows == 0 else tensor


def _same(one: Given, other: Given) -> bool:
    pairs = {(id(a), id(b)): (a, b) for path in one for a, b in zip(one[path], other[path], strict=True)}
    return all(torch.equal(*pair) for pair in pairs.values())


class Comparison:
    """A masked model and small ones on their way through the same batches, side by side, in one arithmetic.

    Args:
        models: the masked one first.
        decode: whether the small ones also go their way with past keys and values.

    Attributes:
        difference: the largest of any logit, of those of decoding, too.
        local: by block, the largest of any hidden state that comes out where the masked model's goes in.
    """

    def __init__(self, models: Sequence[Streamed], decode: bool) -> None:
        self.masked, *self.smalls = models
        self.difference = self.largest_logit = self.largest_state = 0.0
        self.local = [0.0] * len(self.masked.paths)
        self._decodings: list[Decoding | None] = [None] * len(self.smalls)
        self.masked.enter()
        for number, small in enumerate(self.smalls):
            small.enter()
            if all(map(_same, small.given, self.masked.given)):
                small.given = self.masked.given  # no second copy of what is large
            if decode:
                with small.entrance():
                    self._decodings[number] = Decoding(small.family, small.model, small.batches[0], text=DECODED)

    def state(self) -> dict[str, Any]:
        """Say what the rest of the way depends on."""
        hidden = [model.hidden for model in (self.masked, *self.smalls)]
        decodings = [decoding and decoding.state() for decoding in self._decodings]
        numbers = {name: getattr(self, name) for name in ("difference", "largest_logit", "largest_state", "local")}
        return {"hidden": hidden, "decodings": decodings, "numbers": numbers}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on behind the block after which `state` was."""
        for model, hidden in zip((self.masked, *self.smalls), state["hidden"], strict=True):
            model.hidden = [each.to(model.device) for each in hidden]
        for decoding, its in zip(self._decodings, state["decodings"], strict=True):
            if decoding is not None:
                decoding.load(its)
        vars(self).update(state["numbers"])

    def block(self, index: int, local: bool) -> None:
        """Bring all models through a block.

        Args:
            local: whether the first small one is also given what the masked one is given.
        """
        path = self.masked.paths[index]
        with self.masked.holding(path):
            wanted = self.masked.through(path)
        for small, decoding in zip(self.smalls, self._decodings, strict=True):
            with small.holding(path):
                both = local and small is self.smalls[0]
                small.hidden = self._both(index, small, wanted) if both else small.through(path)
                if decoding is not None:
                    decoding.through(index, path, small.model.get_submodule(path))
        self.masked.hidden = wanted

    def _both(self, index: int, small: Streamed, wanted: list[Tensor]) -> list[Tensor]:
        """Run a small model's block on its own states and, in the same call, on the masked one's."""
        path, found = small.paths[index], []
        block = small.model.get_submodule(path)
        states = zip(small.hidden, self.masked.hidden, small.given, wanted, small.batches, strict=True)
        for hidden, other, given, result, batch in states:
            own, its = block(torch.cat([hidden, other]), *(_twice(each, len(hidden)) for each in given[path])).chunk(2)
            used = in_use(batch)
            self.largest_state = max(self.largest_state, float(result[used].abs().max()))
            self.local[index] = max(self.local[index], largest(its[used] - result[used]))
            found.append(own)
        return found

    def logits(self, tokens: range) -> Tensor:
        """Compare the small models' logits with the masked one's (n, tokens), which are returned."""
        wanted = self.masked.leave(self.masked.used(), tokens)
        self.largest_logit = max(self.largest_logit, largest(wanted))
        for small, decoding in zip(self.smalls, self._decodings, strict=True):
            states = [small.used(), *(decoding.both() if decoding is not None else ())]
            found, *decoded = small.leave(torch.cat(states), tokens).split([len(each) for each in states])
            self.difference = max(self.difference, largest(found - wanted))
            if decoded:
                self.difference = max(self.difference, largest(decoded[0] - decoded[1]))
        return wanted
