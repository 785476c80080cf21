"""PyTorch's own engine: one process, DDP or FSDP2, one code path chosen by the size of the world.

    TorchEngine   how processes train a model together; makes a driver for each model
    TorchDriver   one model in training: its weights, gradients, moments and loss scale, wherever they lie

The loop runs on every rank alike: it asks for the same global batch, takes this rank's sequences of it, and divides
their loss by the number of targets in the whole batch. So gradients are *added* over ranks, never averaged, and the
size of the world changes nothing. Other engines are subclasses: the loop is the same wherever it runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._composable.checkpoint_activation import checkpoint

from sprunec.checkpoint.reader import Tensors
from sprunec.data.batches import Batch
from sprunec.engines.device import Place
from sprunec.engines.filling import fill_shards, fill_whole
from sprunec.engines.losses import Term, WithLosses
from sprunec.engines.nonfinite import LossScale, non_finite
from sprunec.engines.optimizers import make_optimizer
from sprunec.engines.processes.world import World
from sprunec.engines.sharding import Gathered, is_sharded, like, local, replicate, shard, total_norm
from sprunec.engines.training import Training
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
        compiled: blocks run as kernels that `torch.compile` makes of them.
    """

    place: Place
    world: World = field(default_factory=World)
    full: bool = False
    recompute: bool = False
    offload: bool = False
    compiled: bool = False

    def load(self, model: nn.Module, weights: Tensors, *, dtype: torch.dtype | None = torch.float32) -> nn.Module:
        """Fill an empty model where it will work, with no more of the weights than this rank keeps; all ranks do.

        So may a model be that runs forward alone, as a teacher does.

        Args:
            model: on the meta device; its blocks may be graphs with gates.
            weights: by its names, opened; of what becomes shards each rank reads its own rows.
            dtype: what the weights are kept in; None: what they are stored in.

        Raises:
            InputError: a tensor is missing, left over, or of another shape.
        """
        if self.full:
            shard(model, self.place, self.world.size, offload=self.offload)
            fill_shards(model, weights, dtype, "cpu" if self.offload else self.place.device)
            return model
        fill_whole(model, weights, dtype)
        return model.to(self.place.device)

    def drive(
        self, model: nn.Module, training: Training, others: Iterable[nn.Parameter] = (), kept: Masks | None = None
    ) -> TorchDriver:
        """Take a model over, block by block, and make its optimizer; called by all ranks on the same weights.

        Args:
            model: as `load` has filled it, or whole, on this rank's device; its blocks may be graphs with gates. What
                becomes of it is the engine's: ask `weights` for what was trained, and use the model no more.
            others: what is trained beside it, the same on all ranks.
            kept: bool masks by parameter name, True where the weight trains; the others, which a 2:4 pattern has set
                to zero, stay so whatever the optimizer does.
        """
        return TorchDriver(self, model, training, list(others), kept or {})

    def weights(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Return a driven model's state, whole and plain, by its own names; of shards each is gathered when asked for.

        All ranks then ask for all in turn; those of other engines have nothing elsewhere than on rank 0.
        """
        return Gathered(model.state_dict()) if self.full else model.state_dict()


class TorchDriver:
    """One model in training; every call is made by all ranks alike."""

    def __init__(
        self, engine: TorchEngine, model: nn.Module, training: Training, others: list[nn.Parameter], kept: Masks
    ) -> None:
        if engine.recompute:
            for _, block in blocks(model):
                checkpoint(block)
        if engine.compiled:
            from sprunec.engines.compiled import compile_blocks

            compile_blocks(model)
        if engine.full and not is_sharded(model):
            shard(model, engine.place, engine.world.size, offload=engine.offload)
        self.engine, self.model, self.training, self.others = engine, model.train(), training, others
        whole, learns = WithLosses(model), any(parameter.requires_grad for parameter in model.parameters())
        several = engine.world.size > 1 and not engine.full
        self.copies = replicate(whole, engine.place.device) if several and learns else None
        self.forward: nn.Module = self.copies or whole
        self.optimizer = make_optimizer(model, training, others)
        self.pruned = pruned_weights(model, kept)
        self.loss_scale = LossScale(training.loss_scale, enabled=engine.place.dtype == torch.float16)

    @property
    def scale(self) -> float:
        """What this step's losses are multiplied by; 1 in precisions that need no loss scale."""
        return self.loss_scale.value

    @property
    def scaled(self) -> bool:
        """Whether there is a loss scale, so that a step may be left out."""
        return self.loss_scale.enabled

    def part(self, last: bool) -> AbstractContextManager[None]:
        """Surround the forward and backward pass of a part of this rank's sequences; `last`: gradients are then whole.

        With shards of weights on each rank, those of gradients are added at once: whole ones are large.
        """
        return nullcontext() if last or self.copies is None else self.copies.no_sync()

    def losses(self, part: Batch, terms: Sequence[Term], on: str = "targets") -> tuple[Tensor, Tensor]:
        """Return the sum of a part's losses, taken on some positions, which has gradients, and each of them."""
        total, each = self.forward(part, terms, self.scale, on)
        return total, each

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a part's loss, times the loss scale, to those before."""
        (loss * self.scale).backward()

    def norm(self) -> float:
        """Finish the gradients: add them over ranks, take out the loss scale, leave pruned weights out.

        Returns:
            Their norm over all ranks; not finite if any of them is not.
        """
        self.engine.world.all_reduce([p.grad for p in self.others if p.grad is not None])
        gradients = [p.grad for p in self._trained() if p.grad is not None]
        if self.scaled:
            for gradient in gradients:
                gradient.div_(self.scale)
        zero((weight.grad, mask) for weight, mask in self.pruned)  # what will not move counts in no norm and no moment
        return total_norm(gradients)

    def _trained(self) -> list[nn.Parameter]:
        """List what is trained, in the order that the optimizer numbers it in."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def step(self, rate: float, norm: float) -> None:
        """Clip to what the training says, given the norm before, and move; pruned weights stay zero."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
            if self.training.clip_grad is not None and norm > self.training.clip_grad:
                # A group's tensors are all sharded, or all whole.
                nn.utils.clip_grads_with_norm_(group["params"], self.training.clip_grad, torch.tensor(norm))
        self.optimizer.step()
        zero(self.pruned)  # decay and momentum may have moved them

    def end(self, finite: bool) -> None:
        """Choose the next loss scale, and forget the gradients, after each step, made or left out."""
        self.loss_scale.update(finite)
        self.optimizer.zero_grad(set_to_none=True)

    def finite(self) -> bool:
        """Say whether all weights are, on all ranks."""
        bad = non_finite([local(parameter) for parameter in self.model.parameters()])
        return not any(self.engine.world.total([float(bad)]))

    def state(self) -> dict[str, Any]:
        """Return weights, moments and loss scale, as `load` takes them: the same whatever the world.

        Plain tensors, of which rank 0's are written; or as `shards`, by name, each rank's shards (DTensors), which are
        written to a folder, and whose place `load` is then given instead. Moments are of one group of all parameters.
        Weights that do not train are no part of it.
        """
        frozen = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
        weights = {name: tensor for name, tensor in self.model.state_dict().items() if name not in frozen}
        moments = self.optimizer.state_dict()
        groups = [moments["param_groups"][0] | {"params": list(range(len(self._trained())))}]
        rest = {"scaler": self.loss_scale.state_dict()}
        if not self.engine.full:
            return {"model": weights, "optimizer": {"state": moments["state"], "param_groups": groups}} | rest
        shards = {f"model/{name}": tensor for name, tensor in weights.items()}
        for number, entries in moments["state"].items():
            shards |= {f"optimizer/{number}/{key}": value for key, value in entries.items() if value is not None}
        return {"shards": shards, "groups": groups} | rest

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a state that was saved by a world of any size; every rank is given the same whole state."""
        state = self._read(state) if "shards" in state else state
        here, parameters, (group, *_) = self.model.state_dict(), self._trained(), state["optimizer"]["param_groups"]
        saved = {name: like(tensor, here[name]) for name, tensor in state["model"].items()}
        self.model.load_state_dict({**here, **saved})
        moments = {
            number: {k: like(v, parameters[number]) if isinstance(v, Tensor) else v for k, v in entries.items()}
            for number, entries in state["optimizer"]["state"].items()
        }
        groups = [group | {"params": own["params"]} for own in self.optimizer.state_dict()["param_groups"]]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.loss_scale.load_state_dict(state["scaler"])

    def _read(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Read the state of a folder of shards, as this world shards it."""
        from sprunec.engines.shards import read_shards, shard_sizes

        here, parameters, found = self.model.state_dict(), self._trained(), dict[str, Tensor]()
        weights, moments = dict[str, Tensor](), defaultdict[int, dict[str, Tensor]](dict)
        for path, about in shard_sizes(state["shards"]).items():
            kind, name, *key = path.split("/")
            owner = here[name] if kind == "model" else parameters[int(name)]
            tensor = found[path] = torch.empty_like(owner) if owner.shape == about.size else torch.empty(about.size)
            if key:
                moments[int(name)][key[0]] = tensor
            else:
                weights[name] = tensor
        read_shards(state["shards"], found)
        return {**state, "model": weights, "optimizer": {"state": moments, "param_groups": state["groups"]}}


def pruned_weights(model: nn.Module, kept: Masks) -> list[tuple[nn.Parameter, Tensor]]:
    """Pair the weights of a model that have masks with what of this rank's part of them does not train."""
    pairs = [(model.get_parameter(name), mask) for name, mask in kept.items()]
    return [(weight, ~local(like(mask.to(weight.device), weight))) for weight, mask in pairs]


@torch.no_grad()
def zero(tensors: Iterable[tuple[Tensor | None, Tensor]]) -> None:
    """Set each tensor to zero where its mask says so: filled, since 0 x infinity is NaN."""
    for tensor, mask in tensors:
        if tensor is not None:
            local(tensor).masked_fill_(mask, 0.0)
