"""PyTorch's own engine: one process, DDP or FSDP2, one code path chosen by the size of the world."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._composable.checkpoint_activation import checkpoint
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn.parallel import DistributedDataParallel

from sprunec.engines.device import Place
from sprunec.engines.nonfinite import non_finite
from sprunec.engines.optimizer import LossScale, in_groups, make_optimizer, one_group
from sprunec.engines.sharding import like, local, replicate, shard, total_norm
from sprunec.engines.shards import read_shards, shard_sizes
from sprunec.engines.sparse_training import PrunedWeights
from sprunec.engines.training import Training
from sprunec.engines.world import World
from sprunec.families.module_lists import blocks


@dataclass(frozen=True)
class TorchEngine:
    """See `Engine`.

    Attributes:
        full: every rank keeps a part of the model (FSDP2), not all of it (DDP).
        recompute: blocks keep their inputs only, and compute what is inside them again on the way back.
        offload: with `full`, parts and moments stay in the memory of the CPU.
    """

    place: Place
    world: World = field(default_factory=World)
    full: bool = False
    recompute: bool = False
    offload: bool = False

    def drive(
        self,
        model: nn.Module,
        training: Training,
        others: Iterable[nn.Parameter] = (),
        kept: Mapping[str, Tensor] | None = None,
    ) -> TorchDriver:
        if self.recompute:
            for _, block in blocks(model):
                checkpoint(block)
        if self.full:
            shard(model, self.place, self.world.size, offload=self.offload)
        copies = replicate(model, self.place.device) if self.world.size > 1 and not self.full else None
        return TorchDriver(self, model, copies, training, list(others), kept)

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        if not self.full:
            return model.state_dict()
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return dict(get_model_state_dict(model, options=options))  # type: ignore[arg-type]


class TorchDriver:
    """See `Driver`."""

    def __init__(
        self,
        engine: TorchEngine,
        model: nn.Module,
        copies: DistributedDataParallel | None,
        training: Training,
        others: list[nn.Parameter],
        kept: Mapping[str, Tensor] | None,
    ) -> None:
        self.engine, self.training, self.others = engine, training, others
        self.model, self.copies = model.train(), copies
        self.optimizer = make_optimizer(model, training, others)
        self.pruned = PrunedWeights(model, kept) if kept else None
        half = engine.place.dtype == torch.float16
        self.loss_scale = LossScale(training.loss_scale, enabled=half)

    @property
    def scale(self) -> float:
        return self.loss_scale.value

    @property
    def scaled(self) -> bool:
        return self.loss_scale.enabled

    @contextmanager
    def part(self, last: bool) -> Iterator[None]:
        """With parts of weights on each rank, those of gradients are added at once: whole ones are large."""
        if self.copies is not None and not last:
            with self.copies.no_sync():
                yield
        else:
            yield

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = (self.model if self.copies is None else self.copies)(**inputs)[0]
        return logits

    def backward(self, loss: Tensor) -> None:
        (loss * self.scale).backward()

    def norm(self) -> float:
        self.engine.world.all_reduce([p.grad for p in self.others if p.grad is not None])
        if self.scaled:
            for gradient in self._gradients():
                gradient.div_(self.scale)
        if self.pruned is not None:
            self.pruned.zero_gradients()
        return total_norm(self._gradients())

    def _gradients(self) -> list[Tensor]:
        return [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]

    def step(self, rate: float, norm: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.training.clip_grad is not None:
            for group in self.optimizer.param_groups:  # a group's tensors are all in parts, or all whole
                nn.utils.clip_grads_with_norm_(group["params"], self.training.clip_grad, torch.tensor(norm))
        self.optimizer.step()
        if self.pruned is not None:
            self.pruned.zero()

    def end(self, finite: bool) -> None:
        self.loss_scale.update(finite)
        self.optimizer.zero_grad(set_to_none=True)

    def finite(self) -> bool:
        bad = non_finite([local(parameter) for parameter in self.model.parameters()])
        return not any(self.engine.world.total([float(bad)]))

    def state(self) -> dict[str, Any]:
        moments, scaler = one_group(self.optimizer.state_dict()), self.loss_scale.state_dict()
        if not self.engine.full:
            return {"model": self.model.state_dict(), "optimizer": moments, "scaler": scaler}
        shards = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        for number, entries in moments["state"].items():
            shards |= {f"optimizer/{number}/{key}": value for key, value in entries.items() if value is not None}
        return {"shards": shards, "groups": moments["param_groups"], "scaler": scaler}

    def load(self, state: Mapping[str, Any]) -> None:
        state = self._read(state) if "shards" in state else state
        here = self.model.state_dict()
        self.model.load_state_dict({name: like(tensor, here[name]) for name, tensor in state["model"].items()})
        self.optimizer.load_state_dict(self._moments(in_groups(state["optimizer"], self.optimizer)))
        self.loss_scale.load_state_dict(state["scaler"])

    def _read(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The state of a folder of parts, as this world parts it."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        here, found = self.model.state_dict(), {}
        for name, about in shard_sizes(state["shards"]).items():
            kind, _, rest = name.partition("/")
            owner = here[rest] if kind == "model" else parameters[int(rest.partition("/")[0])]
            found[name] = torch.empty_like(owner) if owner.shape == about.size else torch.empty(about.size)
        read_shards(state["shards"], found)
        moments: dict[int, dict[str, Tensor]] = {}
        for name in (name for name in found if name.startswith("optimizer/")):
            _, number, key = name.split("/")
            moments.setdefault(int(number), {})[key] = found[name]
        weights = {name.removeprefix("model/"): tensor for name, tensor in found.items() if name.startswith("model/")}
        return {**state, "model": weights, "optimizer": {"state": moments, "param_groups": state["groups"]}}

    def _moments(self, state: dict[str, Any]) -> dict[str, Any]:
        """An optimizer's state, shared out as the parameters are."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for number, entries in state["state"].items():
            for key, value in entries.items():
                entries[key] = like(value, parameters[number]) if isinstance(value, Tensor) else value
        return state
