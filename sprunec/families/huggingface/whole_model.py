"""A causal language model of `transformers` whose blocks are graphs that take tensors alone.

What stands around the blocks (embeddings, rotary tables, masks, the last norm, the head, caps and scales of logits) is
the class's own code: it is run with stand-ins in the place of the blocks, which note what each is given, and hand over
what comes behind the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprunec.families.base import Given
from sprunec.families.block_calls import BlockCall, hand_on
from sprunec.families.huggingface.causal_mask import Apart
from sprunec.families.huggingface.recording import past_keyword
from sprunec.families.torch_modes import InFloat64, values_unread


class TiedHead(nn.Module):
    """A head that projects on the table that tokens are looked up in, and has no weight of its own."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self._table = [table]  # in a list it is no child: its weight has one name

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self._table[0].weight)


def _past(length: int, layers: int, device: torch.device) -> Any:
    """Make a cache of so many positions, of which nothing is read but how many they are."""
    from transformers import DynamicCache

    cache, nothing = DynamicCache(), torch.zeros(1, 1, length, 1, device=device)
    for layer in range(layers):
        cache.update(nothing, nothing, layer)
    return cache


class _Entered(Exception):  # noqa: N818
    """Ends a run in front of what comes behind the blocks."""


class _StandIn(nn.Module):
    """Takes the place of a block: hands on what `see` makes of its arguments."""

    def __init__(self, block: nn.Module, see: Callable[[tuple[Any, ...], dict[str, Any]], Any]) -> None:
        super().__init__()
        self._see = see
        hand_on(block, self)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._see(args, kwargs)


class TransformersModel(nn.Module):
    """Has the modules of a model of `transformers` by the names that they have there.

    Args:
        whole: the model, in which every block's place will be taken by one that takes tensors.
        calls: by block path and method, how the model calls it.
        past_shapes: by block, (groups, dims) of its keys, and of its values; None without attention.
        positions: how many a text may have.
        head_name: what the head is called on disk, where in memory some releases have another name for it.

    Attributes:
        paths: of the blocks.
        table: the module that tokens are looked up in.
        entrance: modules with parameters that run in front of the blocks, but for the table.
        exit: those that run behind them, the head last: of a tied model the table.
    """

    def __init__(
        self,
        whole: Any,
        calls: Mapping[str, Mapping[str, BlockCall]],
        past_shapes: Sequence[Any],
        head_name: str,
        positions: int,
    ) -> None:
        super().__init__()
        self._past_keyword = past_keyword(whole)
        self.past_shapes, self.positions = tuple(past_shapes), positions
        head, table = whole.get_output_embeddings(), whole.get_input_embeddings()
        tied = head.weight is table.weight
        if tied:
            whole.set_output_embeddings(TiedHead(table))
        for name, child in whole.named_children():
            self.add_module(head_name if child is head else name, child)
        self._whole, self._calls = [whole], dict(calls)
        self.paths = list(calls)
        self.entrance: tuple[str, ...] = ()
        names = {module: name for name, module in self.named_modules()}
        self.table = names[table]
        self.entrance, behind = self._around()
        self.exit = (*(name for name in behind if name != names.get(head)), self.table if tied else names[head])

    def _around(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """List the modules with parameters that run in front of the blocks, and behind them."""
        ran: list[str] = []
        handles = [
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
            for name, module in self.named_modules()
            if next(module.parameters(recurse=False), None) is not None and not name.startswith(tuple(self.paths))
        ]
        try:
            with values_unread():
                hidden, _ = self.enter(torch.zeros(1, 1, dtype=torch.long, device="meta"))
                in_front = len(ran)
                self.leave(hidden[0])
        finally:
            for handle in handles:
                handle.remove()
        # Behind the blocks nothing runs again but what stands in front of them, on its way there.
        entrance = tuple(dict.fromkeys(name for name in ran[:in_front] if name != self.table))
        return entrance, tuple(name for name in ran[in_front:] if name not in (*entrance, self.table))

    @contextmanager
    def _without_blocks(
        self, see: Callable[[str, tuple[Any, ...], dict[str, Any]], Any], dtype: torch.dtype
    ) -> Iterator[Any]:
        """Let the class's own code run meanwhile, with stand-ins for its blocks; in a run in float64 all of it."""
        blocks = {path: self.get_submodule(path) for path in self.paths}
        try:
            for path, block in blocks.items():
                self.set_submodule(path, _StandIn(block, partial(see, path)))
            with InFloat64() if dtype == torch.float64 else nullcontext():
                yield self._whole[0]
        finally:
            for path, block in blocks.items():
                self.set_submodule(path, block)

    def enter(self, ids: Tensor, past: int = 0, position: Tensor | None = None) -> tuple[Tensor, Given]:
        """Turn ids (B, N) into hidden states (B, N, D) in front of the first block, and what all blocks are given.

        Args:
            past: the length of a past that stands before them.
            position: (B, N) in the document that a token is of: 0 where one begins, and no other is seen from it.
        """
        seen: dict[str, tuple[Tensor, ...]] = {}
        method, given = "forward_cached" if past else "forward", {"input_ids": ids, "use_cache": bool(past)}
        if past:
            given[self._past_keyword] = _past(past, len(self.paths), ids.device)
        apart = None if position is None else Apart(position)
        if position is not None:
            given["position_ids"] = position

        def see(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = self._calls[path].get(method, self._calls[path]["forward"])
            found = call.tensors(args, kwargs)
            found = found if apart is None else tuple(map(apart, found))
            seen[path] = found[:-2] if past and method in self._calls[path] else found
            if len(seen) == len(self.paths):
                raise _Entered
            return call.result(seen[path][0])

        with self._without_blocks(see, self._dtype) as whole, suppress(_Entered):
            whole(**given)
        first = next(iter(seen.values()))[0]
        return first, {path: found[1:] for path, found in seen.items()}

    def leave(self, hidden: Tensor) -> Tensor:
        """Turn hidden states (n, D), or (B, N, D), behind the last block into logits (n, V), or (B, N, V)."""
        last, in_front = self.paths[-1], ExitStack()
        rows = hidden if hidden.dim() == 3 else hidden[:, None]

        def see(path: str, *_: Any) -> Any:
            if path == last:
                in_front.close()
            return self._calls[path]["forward"].result(rows if path == last else nothing)

        # What stands in front of the last block has no part in it, and need not have its weights.
        before = [parameter for name in self.entrance for parameter in self.get_submodule(name).parameters()]
        device = before[0].device if before else hidden.device
        nothing = torch.zeros(rows.shape, dtype=hidden.dtype, device=device)
        with self._without_blocks(see, hidden.dtype) as whole, in_front:
            in_front.enter_context(values_unread() if nothing.is_meta else torch.no_grad())
            logits: Tensor = whole(inputs_embeds=nothing, use_cache=False).logits
        return logits if rows is hidden else logits.squeeze(1)

    def train(self, mode: bool = True) -> Self:
        """Stay as it was traced: what a class does in training alone draws noise, which no seed and step decide."""
        return super().train(False)

    def forward(
        self, input: Tensor, length: Tensor | None = None, position: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Give logits (B, N, V) and the hidden states in front of the last norm; what is padded stands on the right.

        Args:
            position: as `enter` takes it, of rows of several documents.
        """
        hidden = self.states(input, length, position)
        return self.leave(hidden), hidden

    def states(self, input: Tensor, length: Tensor | None = None, position: Tensor | None = None) -> Tensor:
        """Run all positions at once, without what stands behind the blocks: (B, N, D)."""
        hidden, given = self.enter(input, position=position)
        for path in self.paths:
            hidden = self.get_submodule(path)(hidden, *given[path])
        return hidden

    def project(self, hidden: Tensor) -> Tensor:
        """Turn some of these (n, D) into logits (n, V)."""
        return self.leave(hidden)

    @torch.no_grad()
    def generate(
        self,
        input: Tensor,
        *,
        max_new_tokens: int,
        temperature: float,
        generator: torch.Generator,
        stop: int | None = None,
    ) -> Tensor:
        """Draw tokens after a text (1, n) -> it and the new ones (1, at most n + max_new_tokens)."""
        pasts = self.empty_pasts(input)
        new, drawn = input, list[Tensor]()
        for _ in range(min(max_new_tokens, self.positions - input.size(1))):
            hidden, given = self.enter(new, past=input.size(1) + len(drawn) - new.size(1))
            for number, path in enumerate(self.paths):
                past = pasts[number] or (None, None)
                block: Any = self.get_submodule(path)
                hidden, *pasts[number] = block.forward_cached(hidden, *given[path], *past)
            logits = self.leave(hidden[:, -1]).float() / temperature
            new = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            drawn.append(new)
            if stop is not None and int(new) == stop:
                break
        return torch.cat([input, *drawn], 1)

    def empty_pasts(self, ids: Tensor) -> list[Any]:
        """Give each block's keys and values (1, groups, 0, dims) of no position; None where it keeps none."""
        like: dict[str, Any] = {"dtype": self._dtype, "device": ids.device}
        return [
            shapes and [torch.empty(1, groups, 0, dims, **like) for groups, dims in shapes]
            for shapes in self.past_shapes
        ]

    @property
    def _dtype(self) -> torch.dtype:
        """The type that the model computes in: that of its table, unless this is whole numbers."""
        table = next(self.get_submodule(self.table).parameters())
        return table.dtype if table.is_floating_point() else torch.float32
