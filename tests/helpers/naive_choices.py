"""Damages told again on a whole model in memory: weights are fitted to the inputs themselves, and really swapped in.

No trace, mask, stream or moment of ours takes part. The sampled token is the first one up to which the probabilities
add up to more than the uniform number that is drawn for its position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sprunec.data.batches import IGNORED, Batch
from sprunec.masks.search.damages_file import Damages
from sprunec.plan.search.choices import Choice
from tests.conftest import random_batch
from tests.helpers.causal_lms import VOCABULARY
from tests.helpers.choices import OPTIONS, REFITTED


@dataclass(frozen=True)
class Names:
    """Modules of a block: itself, the projections out of its sublayers, and what is added to the stream."""

    block: str
    attention: tuple[str, str]
    feed_forward: tuple[str, str]


LLAMA = Names("model.layers.{}", ("self_attn.o_proj", "self_attn.o_proj"), ("mlp.down_proj", "mlp.down_proj"))
NAMES = {
    "llama": LLAMA,
    "qwen3": LLAMA,
    "gemma3_text": Names(
        "model.layers.{}",
        ("self_attn.o_proj", "post_attention_layernorm"),
        ("mlp.down_proj", "post_feedforward_layernorm"),
    ),
    "gpt2": Names("transformer.h.{}", ("attn.c_proj", "attn.c_proj"), ("mlp.c_proj", "mlp.c_proj")),
    "cpm_ant": Names(
        "encoder.layers.{}",
        ("self_att.self_attention.attention_out", "self_att.self_attention"),
        ("ffn.ffn.w_out", "ffn.ffn"),
    ),
}


def batches(kind: str, count: int = 5) -> list[Batch]:
    """Rows that ask for a token at most positions, the last one padded where a family can be."""
    found = []
    for seed in range(count):
        noise = torch.Generator().manual_seed(seed)
        if kind == "cpm_ant":
            inputs = random_batch(2, 40, context=False, seed=seed)
        else:
            ids = torch.randint(3, VOCABULARY, (2, 40), generator=noise)
            inputs = {"input": ids, "length": torch.tensor([40, 31])}
        targets = inputs["input"].roll(-1, 1).clone()
        targets[torch.rand(targets.shape, generator=noise) < 0.2] = IGNORED
        targets[torch.arange(targets.size(1)) >= inputs["length"][:, None]] = IGNORED
        found.append(Batch(inputs, targets))
    return found


class Naive:
    """A model in memory, and the choices that were measured of it."""

    def __init__(self, kind: str, model: Any, given: Sequence[Batch], found: Damages, ridge: float) -> None:
        self.model, self.names, self.found, self.ridge = model, NAMES[kind], found, ridge
        self.refitted, self.measured = given[:REFITTED], given[REFITTED:]
        self.heads = 0

    def run(self, batch: Batch) -> Tensor:
        """Give the logits (B, N, V)."""
        if self.names is NAMES["cpm_ant"]:
            logits: Tensor = self.model(**batch.inputs)[0]
            return logits
        used = torch.arange(batch.targets.size(1)) < batch.inputs["length"][:, None]
        found: Tensor = self.model(input_ids=batch.inputs["input"], attention_mask=used.long(), use_cache=False).logits
        return found

    def module(self, choice: Choice, which: int) -> nn.Module:
        block = self.names.block.format(choice.layer)
        if choice.sublayer == "block":
            return self.model.get_submodule(block)
        return self.model.get_submodule(f"{block}.{getattr(self.names, choice.sublayer)[which]}")

    def columns(self, choice: Choice, width: int) -> list[int]:
        """Say which columns of the projection stay."""
        scores = {unit: value.tolist() for (layer, unit), value in self.found.scores.items() if layer == choice.layer}

        def best(values: Sequence[float], count: int) -> list[int]:
            return sorted(sorted(range(len(values)), key=lambda index: -values[index])[:count])

        if choice.sublayer == "feed_forward":
            return best(scores["dim_ff"], choice.kept["dim_ff"])
        dense = max(c.kept["head"] for c, _ in self.found.choices if c.layer == choice.layer and "head" in c.kept)
        all_groups = len(scores.get("kv_group", [0]))
        groups, each = choice.kept.get("kv_group", 1), dense // all_groups
        heads = []
        for group in best(scores.get("kv_group", [0.0]), groups):
            own = scores["head"][group * each : (group + 1) * each]
            heads += [group * each + head for head in best(own, choice.kept["head"] // groups)]
        return [head * (width // dense) + d for head in heads for d in range(width // dense)]

    def swapped(self, choice: Choice) -> Tensor:
        """Give the projection's weight (outputs, columns) with a choice's, fitted to the inputs themselves."""
        module, seen = self.module(choice, 0), list[Tensor]()
        handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
        for batch in self.refitted:
            with torch.no_grad():
                self.run(batch)
        handle.remove()
        used = [torch.arange(b.targets.size(1)) < b.inputs["length"][:, None] for b in self.refitted]
        x = torch.cat([each[some] for each, some in zip(seen, used, strict=True)]).double()
        old, kept = self.old(choice).double(), self.columns(choice, x.size(1))
        strength = (x.square().sum(0).mean() * self.ridge).sqrt()
        more = strength * torch.eye(len(kept), dtype=torch.double)
        rows = torch.cat([x[:, kept], more]), torch.cat([x @ old.T, strength * old[:, kept].T])
        new = torch.zeros_like(old)
        new[:, kept] = torch.linalg.lstsq(*rows).solution.T
        return new.float()

    def old(self, choice: Choice) -> Tensor:
        """Give the weight whose outputs a choice's are fitted to."""
        return weight(self.module(choice, 0))

    def fisher(self, samples: int = 1) -> Iterator[tuple[Choice, float]]:
        """Give half the mean of (g . d)² for each choice, by the whole model's own gradients."""
        noise, totals, asked = torch.Generator().manual_seed(OPTIONS["seed"]), dict[int, float](), 0
        counts = [int(each.sum()) for each in self._asked()]
        uniform = [torch.rand(samples, count, generator=noise, dtype=torch.double) for count in counts]
        for (batch, mask), draws in zip(self._pairs(), uniform, strict=True):
            used = torch.arange(batch.targets.size(1)) < batch.inputs["length"][:, None]
            asked += len(draws) * int(mask.sum())
            for each in draws:
                with self._outputs() as outputs:
                    logs = self.run(batch).log_softmax(-1)[mask]
                drawn = (logs.detach().double().exp().cumsum(-1) <= each[:, None]).sum(-1)
                logs.gather(1, drawn[:, None]).sum().backward()
                for number, (choice, _) in enumerate(self.found.choices):
                    state, change = self._change(choice, outputs)
                    along = (state.grad * change).sum(-1)[used].double()
                    totals[number] = totals.get(number, 0.0) + float(along.square().sum()) / 2
        for number, (choice, _) in enumerate(self.found.choices):
            yield choice, totals[number] / asked

    def divergence(self) -> Iterator[tuple[Choice, float]]:
        """Give the mean KL(dense || changed) for each choice, of models that are really changed."""
        with torch.no_grad():
            dense = [self.run(batch)[mask].double().log_softmax(-1) for batch, mask in self._pairs()]
            for choice, _ in self.found.choices:
                with self._changed(choice):
                    changed = [self.run(batch)[mask].double().log_softmax(-1) for batch, mask in self._pairs()]
                parts = [(p.exp() * (p - q)).sum() for p, q in zip(dense, changed, strict=True)]
                yield choice, float(sum(parts)) / sum(map(len, dense))

    def _pairs(self) -> Iterator[tuple[Batch, Tensor]]:
        return zip(self.measured, self._asked(), strict=True)

    def _asked(self) -> list[Tensor]:
        return [batch.targets != IGNORED for batch in self.measured]

    @contextmanager
    def _outputs(self) -> Iterator[dict[tuple[int, str, int], tuple[Tensor, Tensor]]]:
        """Note what modules that choices are about are given and give, with a gradient to come."""
        found: dict[tuple[int, str, int], tuple[Tensor, Tensor]] = {}

        def see(key: tuple[int, str, int]) -> Callable[..., None]:
            def hook(module: nn.Module, given: Any, result: Any) -> None:
                state = result if isinstance(result, Tensor) else result[0]
                state.retain_grad()
                found[key] = (given[0].detach(), state)

            return hook

        keys = {(c.layer, c.sublayer, int(not c.kept)): c for c, _ in self.found.choices}
        handles = [self.module(c, key[2]).register_forward_hook(see(key)) for key, c in keys.items()]
        yield found
        for handle in handles:
            handle.remove()

    def _change(self, choice: Choice, outputs: Any) -> tuple[Any, Tensor]:
        given, state = outputs[choice.layer, choice.sublayer, int(not choice.kept)]
        if choice.sublayer == "block":
            return state, given - state.detach()
        if not choice.kept:
            return state, -state.detach()
        module = self.module(choice, 0)
        new, before = self._of(choice), weight(module)
        return state, given @ new.T - given @ before.T

    def _of(self, choice: Choice) -> Tensor:
        known = self.__dict__.setdefault("known", {})
        key = (choice.layer, choice.sublayer, tuple(choice.kept.items()))
        if key not in known:
            known[key] = self.swapped(choice)
        found: Tensor = known[key]
        return found

    @contextmanager
    def _changed(self, choice: Choice) -> Iterator[None]:
        with ExitStack() as stack:
            if choice.kept:
                module, new = self.module(choice, 0), self._of(choice)
                before = weight(module).clone()
                weight(module).copy_(new)
                stack.callback(lambda: weight(module).copy_(before))
            else:
                block = choice.sublayer == "block"

                def hook(_: nn.Module, given: Any, result: Any) -> Any:
                    state = result if isinstance(result, Tensor) else result[0]
                    instead = given[0] if block else torch.zeros_like(state)
                    return instead if isinstance(result, Tensor) else (instead, *result[1:])

                stack.callback(self.module(choice, 1).register_forward_hook(hook).remove)
            yield


def weight(module: Any) -> Tensor:
    """See a projection's weight as (outputs, columns)."""
    found: Tensor = module.weight.data
    return found.T if type(module).__name__ == "Conv1D" else found
