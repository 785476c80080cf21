"""A model of any size, run block by block with a few rows of its weights at a time.

The model stands on the meta device. A part's parameters are read when it is entered, in the arithmetic asked for, and
let go of when it is left; only hidden states go on from part to part. Of a large part, matrices are multiplied by some
rows after the others; of the embeddings only the rows that are looked up are read, and the head is gone through a few
tokens at a time. Letters in shapes: B rows, N positions, n positions in use, D width, V tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprunec.checkpoint.header import misfit
from sprunec.checkpoint.reader import Tensors
from sprunec.data.batches import in_use
from sprunec.errors import Diagnostic, InputError
from sprunec.families.base import Family, Given, Inputs
from sprunec.families.module_lists import blocks

HELD_BYTES = 32 * 2**20  # a part of up to so many is kept until it is left
CHUNK_BYTES = 8 * 2**20  # of a matrix that is streamed
LOGITS = 2**22  # numbers, of them and of the head's rows, at a time


class StreamedWeight:
    """A matrix (out, in) that a linear multiplies by some rows at a time; for anything else it is made whole.

    Torch hands the calls that it is an argument of to `__torch_function__`.
    """

    def __init__(self, rows: int, at_once: int, read: Callable[[range], Tensor]) -> None:
        self._parts = [range(first, min(first + at_once, rows)) for first in range(0, rows, at_once)]
        self._read = read

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and isinstance(args[1], cls):
            states, weight, *rest = args
            bias = rest[0] if rest else (kwargs or {}).get("bias")
            biases = [None if bias is None else bias[part.start : part.stop] for part in weight._parts]
            return torch.cat([F.linear(states, *each) for each in zip(weight.parts(), biases, strict=True)], dim=-1)
        whole = [each.whole() if isinstance(each, cls) else each for each in args]
        return func(*whole, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole(), name)

    def whole(self) -> Tensor:
        """Read all of it, in no more memory than it takes."""
        first, *others = self._parts
        rows = self._read(first)
        found = rows.new_empty((self._parts[-1].stop, *rows.shape[1:]))
        found[: first.stop] = rows
        for part in others:
            found[part.start : part.stop] = self._read(part)
        return found

    def parts(self) -> Iterator[Tensor]:
        """Read each while the one before is multiplied with."""
        with ThreadPoolExecutor(1) as reader:
            coming = reader.submit(self._read, self._parts[0])
            for following in self._parts[1:]:
                part, coming = coming.result(), reader.submit(self._read, following)
                yield part
            yield coming.result()


def parameter_names(model: nn.Module, parts: Sequence[str]) -> Iterator[str]:
    """List the parameters of the modules below `parts`, by their names in `model`."""
    for part in parts:
        for path, module in model.get_submodule(part).named_modules(prefix=part):
            yield from (f"{path}.{name}" for name, value in module._parameters.items() if value is not None)


@contextmanager
def with_parameters(model: nn.Module, parts: Sequence[str], read: Callable[[str], Any]) -> Iterator[None]:
    """Give the modules below `parts` other parameters meanwhile: what is read by their names in `model`."""
    modules = [found for part in parts for found in model.get_submodule(part).named_modules(prefix=part)]
    before = [module._parameters for _, module in modules]
    try:
        for path, module in modules:
            names = module._parameters.items()
            module._parameters = {name: None if old is None else read(f"{path}.{name}") for name, old in names}
        yield
    finally:
        for (_, module), parameters in zip(modules, before, strict=True):
            module._parameters = parameters


class Streamed:
    """Batches on their way through a model.

    Args:
        model: of the family, on the meta device but for its indices and gates; several may share one.
        tensors: by the model's names, all of them and no others.
        batches: inputs of its `forward`, on `device`.

    Attributes:
        hidden: (B, N, D) of each batch, behind the part that it has come through last.
        given: of each batch, what blocks are given besides.
        paths: of the blocks.
        tokens: how many the head has rows for.

    Raises:
        InputError: the tensors are not the model's.
    """

    def __init__(
        self,
        family: Family,
        model: nn.Module,
        tensors: Tensors,
        batches: Sequence[Inputs],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        problem = misfit({name: tuple(t.shape) for name, t in model.state_dict().items()}, tensors.shapes())
        if problem:
            raise InputError(Diagnostic("bad-input", f"the weights do not fit the model: {problem}"))
        self.family, self.model, self.batches, self.dtype, self.device = family, model, list(batches), dtype, device
        self.hidden: list[Tensor] = []
        self.given: list[Given] = []
        self.paths = [path for path, _ in blocks(model)]
        self._tensors, self._head = tensors, f"{family.head(model)[-1]}.weight"
        self.tokens = tensors.shape(self._head)[0]
        self._ahead: tuple[str, Future[dict[str, Tensor]]] | None = None
        self._reader = ThreadPoolExecutor(1)

    @contextmanager
    def holding_whole(self, path: str) -> Iterator[None]:
        """Give a block all of its weights meanwhile."""
        ahead, self._ahead = self._ahead, None
        read = ahead[1].result() if ahead is not None and ahead[0] == path else self._read(path)
        move_buffers(self.model.get_submodule(path), self.device)
        with with_parameters(self.model, (path,), lambda name: self._cast(read.pop(name))):
            yield

    def read_ahead(self, path: str) -> None:
        """Read a block while another is at work, as it is stored, which may take half the memory."""
        self._ahead = path, self._reader.submit(self._read, path)

    def _read(self, path: str) -> dict[str, Tensor]:
        return {name: self._tensors[name] for name in parameter_names(self.model, (path,))}

    @contextmanager
    def holding(self, *parts: str) -> Iterator[None]:
        """Give the named modules their weights meanwhile; large ones in parts."""
        tops = [self.model.get_submodule(part) for part in parts]
        for top in tops:
            move_buffers(top, self.device)
        size = sum(parameter.numel() for top in tops for parameter in top.parameters()) * self.dtype.itemsize
        with with_parameters(self.model, parts, self._weight if size <= HELD_BYTES else self._streamed):
            yield

    def stored_dtype(self, name: str) -> torch.dtype:
        return self._tensors.dtype(name)

    def _weight(self, name: str) -> Any:
        return self._cast(self._tensors[name])

    def _streamed(self, name: str) -> Any:
        """Stand in for a matrix, which is read when it is multiplied with, and never whole."""
        rows, *width = self._tensors.shape(name)
        if len(width) != 1:
            return self._weight(name)
        at_once = max(1, CHUNK_BYTES // max(1, width[0] * self.dtype.itemsize))
        return StreamedWeight(rows, at_once, lambda some: self._cast(self._tensors.rows(name, some)))

    def _cast(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self.device)
        if tensor.dtype.itemsize < self.dtype.itemsize // 2:
            tensor = tensor.float()  # from half precision in two steps, which is twice as fast
        return tensor.to(self.dtype)

    @contextmanager
    def entrance(self) -> Iterator[None]:
        """Let the family's `enter` and `decode` work meanwhile, for tokens of the batches."""
        rows = {name: ids.unique().cpu() for name, ids in self.family.looked_up(self.model, self.batches).items()}

        def table(name: str) -> Tensor:
            """Make it of full size: memory that is never touched takes none."""
            found = torch.empty(self._tensors.shape(name), dtype=self.dtype, device=self.device)
            wanted = rows[name.removesuffix(".weight")]
            found[wanted.to(self.device)] = self._cast(self._tensors.rows(name, wanted.tolist()))
            return found

        with self.holding(*self.family.entrance(self.model)), with_parameters(self.model, tuple(rows), table):
            yield

    def enter(self) -> None:
        """Bring all batches in front of the first block."""
        with self.entrance():
            entered = [self.family.enter(self.model, batch) for batch in self.batches]
        self.hidden, self.given = [hidden for hidden, _ in entered], [given for _, given in entered]

    def through(self, path: str) -> list[Tensor]:
        """Run a block, which must be held; `hidden` stays what it is."""
        block = self.model.get_submodule(path)
        return [block(hidden, *given[path]) for hidden, given in zip(self.hidden, self.given, strict=True)]

    @contextmanager
    def exit(self, tokens: range) -> Iterator[Callable[[Tensor], Tensor]]:
        """Give what turns hidden states (n, D) behind the last block into logits (n, tokens), meanwhile."""

        def some(name: str) -> Tensor:
            return self._cast(self._tensors.rows(name, tokens)) if name == self._head else self._weight(name)

        with with_parameters(self.model, self.family.head(self.model), some):
            yield lambda hidden: self.family.leave(self.model, hidden)

    def leave(self, hidden: Tensor, tokens: range) -> Tensor:
        """Turn hidden states (n, D) behind the last block into logits (n, tokens)."""
        with self.exit(tokens) as logits:
            return logits(hidden)

    @torch.no_grad()
    def run(self) -> None:
        """Bring all batches behind the last block."""
        self.enter()
        for path in self.paths:
            with self.holding(path):
                self.hidden = self.through(path)

    def used(self, skipped: int = 0) -> Tensor:
        """Take the hidden states (n, D) of all positions in use but so many first ones of each row."""
        pairs = zip(self.hidden, self.batches, strict=True)
        return torch.cat([hidden[:, skipped:][in_use(batch)[:, skipped:]] for hidden, batch in pairs])

    @torch.no_grad()
    def logits(self, skipped: int = 0) -> Iterator[tuple[range, Tensor]]:
        """Run, and give the logits (n, tokens) of what is `used`, some tokens after the others."""
        self.run()
        states = self.used(skipped)
        step = max(1, LOGITS // max(states.shape))
        for first in range(0, self.tokens, step):
            tokens = range(first, min(first + step, self.tokens))
            yield tokens, self.leave(states, tokens)


def move_buffers(model: nn.Module, device: torch.device) -> None:
    """Move indices and gates, which are no weights: they are there all the time."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = buffer.to(device)


def largest(difference: Tensor) -> float:
    """Take the largest size in a tensor; a NaN must not pass as "no difference"."""
    worst = float(difference.abs().max())
    return worst if worst == worst else float("inf")
