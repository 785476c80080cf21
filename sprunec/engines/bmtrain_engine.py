"""BMTrain (OpenBMB) under the training loop: ZeRO over NCCL, block by block, with its own optimizers and loss scale.

BMTrain 1.0.1 replaces every parameter by this rank's shard, and gathers a block's while the block is at work. What is
known to go wrong there is handled here, or refused with a message before any work:

- containers of a `torch.fx` graph are bare `nn.Module`s, which it cannot subclass: they get a class of their own;
- gates are buffers that change at every step; it would send them, and cannot load them: they are state no more;
- its loading and saving know whole models only; here each shard is put where it belongs, so states stay plain;
- its Adam has weight decay as an L2 term: "adam" is its own, "adamw" and "sgd" are torch's, on the same shards;
- losses are already divided by the targets of the whole batch, so gradients are added over ranks, not averaged.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from sprunec.checkpoint.reader import Tensors
from sprunec.engines.device import Place
from sprunec.engines.filling import fill_whole
from sprunec.engines.losses import WithLosses
from sprunec.engines.optimizers import make_optimizer
from sprunec.engines.torch_engine import Masks, TorchDriver, TorchEngine
from sprunec.engines.training import Training
from sprunec.errors import InputError, PassError
from sprunec.families.module_lists import blocks

INSTALL = "pip install --no-deps bmtrain==1.0.1 (Python 3.11 or older; --no-deps keeps torch's own NCCL)"


def check_here(place: Place) -> None:
    """Raise InputError where BMTrain is not installed, or has no GPU to work on."""
    if find_spec("bmtrain") is None:
        message = "the package bmtrain is not installed"
        raise InputError.in_option("/engine/name", message, INSTALL, code="missing-package")
    if place.device.type != "cuda" or not torch.cuda.is_available():
        hint = 'write "name": "torch", or run where there is a GPU'
        raise InputError.in_option("/engine/name", f"bmtrain works on CUDA alone, and this is {place.device}", hint)


def start(seed: int) -> None:
    """Have BMTrain meet its processes, once; it would also take over threads, cores and standard output."""
    import bmtrain

    if bmtrain.init.is_initialized():
        return
    threads, cores, cudnn = torch.get_num_threads(), os.sched_getaffinity(0), torch.backends.cudnn.enabled
    warnings.filterwarnings("ignore", "TypedStorage is deprecated")
    with contextlib.redirect_stdout(sys.stderr):
        bmtrain.init_distributed(seed=seed)
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, cores)
    torch.backends.cudnn.enabled = cudnn


class Box(nn.Module):
    """A container with a class that can be subclassed."""


@dataclass(frozen=True)
class BMTrainEngine(TorchEngine):
    """BMTrain, as `TorchEngine`.

    Attributes:
        full: shards of weights on each rank (ZeRO-3), not of gradients and moments only (ZeRO-2).
        offload: moments lie in the memory of the CPU, where Adam then works.
    """

    full: bool = True
    seed: int = 0

    def load(self, model: nn.Module, weights: Tensors, *, dtype: torch.dtype | None = torch.float32) -> nn.Module:
        """Fill all of it: what BMTrain makes shards of is a whole model."""
        fill_whole(model, weights, dtype)
        return model.to(self.place.device)

    def drive(
        self, model: nn.Module, training: Training, others: Iterable[nn.Parameter] = (), kept: Masks | None = None
    ) -> BMTrainDriver:
        """Raise InputError for what BMTrain would do wrong without a word, else take the model over."""
        check_here(self.place)
        optimizer, names = training.optimizer, list(model.named_parameters(remove_duplicate=False))
        moved = self.offload and optimizer != "adam"
        problems = {
            "a weight has two names, and bmtrain would train two of it": len(names) > len(list(model.parameters())),
            "bmtrain does not hold 2:4 patterns": bool(kept),
            "bmtrain does not train projections beside the model": bool(list(others)),
            f'bmtrain has no {optimizer} on the CPU; write "optimizer": "adam", or no offload': moved,
        }
        for message in (message for message, found in problems.items() if found):
            raise InputError.in_option("/engine/name", message, 'or write "name": "torch"', code="engine-cannot")
        start(self.seed)
        return BMTrainDriver(self, WithLosses(model), self._wrap(model), training)

    def _wrap(self, model: nn.Module) -> nn.Module:
        import bmtrain

        for module in list(model.modules()):
            if type(module) is nn.Module:
                module.__class__ = Box
            module._non_persistent_buffers_set.update(module._buffers)
        for name, block in list(blocks(model)):
            inner = bmtrain.BMTrainModelWrapper(block)
            level = 3 if self.full else 2
            model.set_submodule(name, bmtrain.Block(inner, use_checkpoint=self.recompute, zero_level=level))
        wrapped: nn.Module = bmtrain.BMTrainModelWrapper(model)
        return wrapped

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        whole = {plain_name(name): self.gather(part, part.data) for name, part in model.named_parameters()}
        return whole if self.world.rank == 0 else {}

    def gather(self, parameter: Any, shard: Tensor) -> Tensor:
        """Gather the whole of something that is sharded as a parameter is, on the CPU of every rank."""
        flat = torch.zeros(parameter._original_shape.numel(), dtype=shard.dtype)
        if shard.numel():
            flat[parameter._start_partition : parameter._end_partition] = shard.detach().cpu()
        self.world.all_reduce([flat])
        return flat.view(parameter._original_shape)


class BMTrainDriver(TorchDriver):
    """See `TorchDriver`."""

    engine: BMTrainEngine

    def __init__(self, engine: BMTrainEngine, whole: WithLosses, model: nn.Module, training: Training) -> None:
        from bmtrain.optim import AdamOffloadOptimizer, AdamOptimizer, OptimManager

        self.engine, self.model, self.training, self.copies = engine, model.train(), training, None
        self.forward = whole
        half = engine.place.dtype == torch.float16
        adam = AdamOffloadOptimizer if engine.offload else AdamOptimizer
        self.optimizer = make_optimizer(model, training, adam=adam)
        self.manager = OptimManager(loss_scale=training.loss_scale if half else None, grad_scale=1)
        self.manager.add_optimizer(self.optimizer)

    @property
    def scale(self) -> float:
        return float(self.manager.loss_scale)

    @property
    def scaled(self) -> bool:
        return bool(self.manager.loss_scale_enabled)

    def backward(self, loss: Tensor) -> None:
        self.manager.backward(loss)

    def norm(self) -> float:
        squares = [p.grad.double().square().sum().item() for p in self.model.parameters() if p.grad is not None]
        return math.sqrt(self.engine.world.total([sum(squares)])[0]) / self.scale

    def step(self, rate: float, norm: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.training.clip_grad is not None:
            self.manager.clip_grad_norm(self.optimizer.param_groups, self.training.clip_grad)
        self.manager.step()

    def end(self, finite: bool) -> None:
        """Lower the loss scale after a bad step; a good one has told the manager already."""
        if not finite and self.scaled:
            smaller = self.manager.loss_scale / self.manager.loss_scale_factor
            self.manager._justify_scale(max(smaller, self.manager.min_loss_scale))
        self.manager.zero_grad()

    def state(self) -> dict[str, Any]:
        # As `LossScale` has it.
        scaler = {"scale": self.scale, "_growth_tracker": self.manager.steps_since_last_scale} if self.scaled else {}
        moments = self._moments(self.optimizer.state_dict(), lambda owner: owner.data.shape, self.engine.gather)
        return {"model": self.engine.weights(self.model), "optimizer": moments, "scaler": scaler}

    def load(self, state: Mapping[str, Any]) -> None:
        if "shards" in state:
            raise PassError(f'{state["shards"]} is in shards of FSDP2, which bmtrain does not read; go on with "torch"')
        parameters: Any = self.model.named_parameters()
        for name, parameter in parameters:
            parameter._copy_data(state["model"][plain_name(name)].to(parameter.device))
        moments = self._moments(state["optimizer"], lambda owner: owner._original_shape, _shard)
        torch.optim.Optimizer.load_state_dict(self.optimizer, moments)
        if self.scaled:
            self.manager.loss_scale = state["scaler"]["scale"]
            self.manager.steps_since_last_scale = state["scaler"]["_growth_tracker"]

    def _moments(
        self, state: Mapping[str, Any], shape_of: Callable[[Any], torch.Size], convert: Callable[[Any, Tensor], Tensor]
    ) -> dict[str, Any]:
        """Convert what an optimizer remembers of each parameter, where that is of its shape and no single number."""
        owners, found = self._trained(), {}
        for number, entries in state["state"].items():
            owner, tensors = owners[number], {key: v for key, v in entries.items() if isinstance(v, Tensor) and v.dim()}
            alike = {key: value for key, value in tensors.items() if value.shape == shape_of(owner)}
            found[number] = entries | {key: convert(owner, value) for key, value in alike.items()}
        return {**state, "state": found}


def plain_name(name: str) -> str:
    """Return a parameter's name in the plain model."""
    return name.replace("._module", "")


def _shard(owner: Any, whole: Tensor) -> Tensor:
    """Cut out of the whole of something what this rank has of its parameter."""
    return whole.flatten()[owner._start_partition : owner._end_partition].clone().view(owner.data.shape)
