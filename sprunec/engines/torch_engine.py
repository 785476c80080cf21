"""PyTorch's own engine: one process, DDP or FSDP2, one code path chosen by the size of the world.

    TorchEngine   how processes train a model together; makes a driver for each model
    TorchDriver   one model in training: its weights, gradients, moments and loss scale, wherever they lie

The loop runs on every rank alike: it asks for the same global batch, takes this rank's sequences of it, and divides
their loss by the number of targets in the whole batch. So gradients are *added* over ranks, never averaged, and the
size of the world changes nothing. Other engines are subclasses: the loop is the same wherever it runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._composable.checkpoint_activation import checkpoint
from torch.nn.parallel import DistributedDataParallel

from sprunec.engines.device import Place
from sprunec.engines.nonfinite import non_finite
from sprunec.engines.optimizer import LossScale, in_groups, make_optimizer, one_group
from sprunec.engines.sharding import like, local, replicate, shard, total_norm
from sprunec.engines.training import Training
from sprunec.engines.world import World
from sprunec.families.module_lists import blocks

Masks = Mapping[str, Tensor]  # bool, by parameter name: True where the weight trains


@dataclass(frozen=True)
class TorchEngine:
    """How a model is trained; nothing of it changes the result.

    Attributes:
        place: the device of this rank's tensors, and the precision of products.
        full: every rank keeps a shard of the model (FSDP2), not all of it (DDP).
        recompute: blocks keep their inputs only, and compute what is inside them again in the backward pass.
        offload: with `full`, shards and moments stay in the memory of the CPU.
    """

    place: Place
    world: World = field(default_factory=World)
    full: bool = False
    recompute: bool = False
    offload: bool = False

    def drive(
        self, model: nn.Module, training: Training, others: Iterable[nn.Parameter] = (), kept: Masks | None = None
    ) -> TorchDriver:
        """Take a model over, block by block, and make its optimizer; called by all ranks on the same weights.

        Args:
            model: whole and plain, on this rank's device; its blocks may be graphs with gates. What becomes of it is
                the engine's: ask `weights` for what was trained, and use the model no more.
            others: what is trained beside it, the same on all ranks.
            kept: bool masks by parameter name, True where the weight trains; the others stay zero.
        """
        if self.recompute:
            for _, block in blocks(model):
                checkpoint(block)
        if self.full:
            shard(model, self.place, self.world.size, offload=self.offload)
        copies = replicate(model, self.place.device) if self.world.size > 1 and not self.full else None
        return TorchDriver(self, model, copies, training, list(others), kept)

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Return a driven model's state, whole and plain, by its own names; elsewhere than on rank 0 maybe nothing."""
        if not self.full:
            return model.state_dict()
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return dict(get_model_state_dict(model, options=options))  # type: ignore[arg-type]


class PrunedWeights:
    """A model's weights that a 2:4 pattern has set to zero: they stay so whatever the optimizer does.

    Args:
        kept: bool masks by parameter name, True where the weight trains.
    """

    def __init__(self, model: nn.Module, kept: Masks) -> None:
        parameters = dict(model.named_parameters())
        masks = {name: like(mask.to(parameters[name].device), parameters[name]) for name, mask in kept.items()}
        self._pruned = [(parameters[name], ~local(mask)) for name, mask in masks.items()]

    @torch.no_grad()
    def zero_gradients(self) -> None:
        """Before clipping: what will not move counts in no norm and in no moment. Filled, since 0 x infinity is NaN."""
        for parameter, pruned in self._pruned:
            if parameter.grad is not None:
                local(parameter.grad).masked_fill_(pruned, 0.0)

    @torch.no_grad()
    def zero(self) -> None:
        """After the step, which decay and momentum may have moved them in."""
        for parameter, pruned in self._pruned:
            local(parameter).masked_fill_(pruned, 0.0)


class TorchDriver:
    """One model in training; every call is made by all ranks alike."""

    def __init__(
        self,
        engine: TorchEngine,
        model: nn.Module,
        copies: DistributedDataParallel | None,
        training: Training,
        others: list[nn.Parameter],
        kept: Masks | None,
    ) -> None:
        self.engine, self.training, self.others = engine, training, others
        self.model, self.copies = model.train(), copies
        self.optimizer = make_optimizer(model, training, others)
        self.pruned = PrunedWeights(model, kept) if kept else None
        self.loss_scale = LossScale(training.loss_scale, enabled=engine.place.dtype == torch.float16)

    @property
    def scale(self) -> float:
        """What this step's losses are multiplied by; 1 in precisions that need no loss scale."""
        return self.loss_scale.value

    @property
    def scaled(self) -> bool:
        """Whether there is a loss scale, so that a step may be left out."""
        return self.loss_scale.enabled

    @contextmanager
    def part(self, last: bool) -> Iterator[None]:
        """Surround the forward and backward pass of a part of this rank's sequences; `last`: gradients are then whole.

        With shards of weights on each rank, those of gradients are added at once: whole ones are large.
        """
        if self.copies is not None and not last:
            with self.copies.no_sync():
                yield
        else:
            yield

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return logits (B, N, V) of a part."""
        logits: Tensor = (self.model if self.copies is None else self.copies)(**inputs)[0]
        return logits

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a part's loss, times the loss scale, to those before."""
        (loss * self.scale).backward()

    def norm(self) -> float:
        """Finish the gradients: add them over ranks, take out the loss scale, leave pruned weights out.

        Returns:
            Their norm over all ranks; not finite if any of them is not.
        """
        self.engine.world.all_reduce([p.grad for p in self.others if p.grad is not None])
        gradients = [p.grad for p in self._parameters() if p.grad is not None]
        if self.scaled:
            for gradient in gradients:
                gradient.div_(self.scale)
        if self.pruned is not None:
            self.pruned.zero_gradients()
        return total_norm(gradients)

    def _parameters(self) -> list[nn.Parameter]:
        """List what is trained, in the order that the optimizer numbers it in."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def step(self, rate: float, norm: float) -> None:
        """Clip to what the training says, given the norm before, and move; pruned weights stay zero."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
            if self.training.clip_grad is not None:  # a group's tensors are all sharded, or all whole
                nn.utils.clip_grads_with_norm_(group["params"], self.training.clip_grad, torch.tensor(norm))
        self.optimizer.step()
        if self.pruned is not None:
            self.pruned.zero()

    def end(self, finite: bool) -> None:
        """Choose the next loss scale, and forget the gradients, after each step, made or left out."""
        self.loss_scale.update(finite)
        self.optimizer.zero_grad(set_to_none=True)

    def finite(self) -> bool:
        """Say whether all weights are, on all ranks."""
        bad = non_finite([local(parameter) for parameter in self.model.parameters()])
        return not any(self.engine.world.total([float(bad)]))

    def state(self) -> dict[str, Any]:
        """Return weights, moments and loss scale, as `load` takes them.

        Plain tensors, of which rank 0's are written; or as `shards`, by name, each rank's shards (DTensors), which are
        written to a folder, and whose place `load` is then given instead.
        """
        moments, scaler = one_group(self.optimizer.state_dict()), self.loss_scale.state_dict()
        if not self.engine.full:
            return {"model": self.model.state_dict(), "optimizer": moments, "scaler": scaler}
        shards = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        for number, entries in moments["state"].items():
            shards |= {f"optimizer/{number}/{key}": value for key, value in entries.items() if value is not None}
        return {"shards": shards, "groups": moments["param_groups"], "scaler": scaler}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that was saved by a world of any size; every rank is given the same whole state."""
        state = self._read(state) if "shards" in state else state
        here = self.model.state_dict()
        self.model.load_state_dict({name: like(tensor, here[name]) for name, tensor in state["model"].items()})
        moments, parameters = in_groups(state["optimizer"], self.optimizer), self._parameters()
        for number, entries in moments["state"].items():
            for key, value in entries.items():
                entries[key] = like(value, parameters[number]) if isinstance(value, Tensor) else value
        self.optimizer.load_state_dict(moments)
        self.loss_scale.load_state_dict(state["scaler"])

    def _read(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Read the state of a folder of shards, as this world shards it."""
        from sprunec.engines.shards import read_shards, shard_sizes

        here, parameters, found = self.model.state_dict(), self._parameters(), dict[str, Tensor]()
        weights, moments = dict[str, Tensor](), dict[int, dict[str, Tensor]]()
        for name, about in shard_sizes(state["shards"]).items():
            kind, _, rest = name.partition("/")
            number, _, key = rest.partition("/")
            owner = here[rest] if kind == "model" else parameters[int(number)]
            tensor = found[name] = torch.empty_like(owner) if owner.shape == about.size else torch.empty(about.size)
            if kind == "model":
                weights[rest] = tensor
            else:
                moments.setdefault(int(number), {})[key] = tensor
        read_shards(state["shards"], found)
        return {**state, "model": weights, "optimizer": {"state": moments, "param_groups": state["groups"]}}
