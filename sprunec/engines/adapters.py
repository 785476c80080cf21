"""Low-rank adapters that train in the place of weights (LoRA, Hu et al. 2022), by peft; merged when the pass ends.

A projection W x becomes W x + s B A x with s = alpha / rank; A (rank, in) and B (out, rank) alone have gradients and
moments. At the end W + s B A is the weight, in float32, and nothing is left that tells of an adapter.

W stays in memory in what it is stored in, where that is half precision: each product turns it into what it is taken in,
which is exact, and once more in the backward pass, so that nothing wider is ever kept.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sprunec.data.batches import IGNORED, Batch
from sprunec.engines.training import Adapter
from sprunec.errors import InputError, PassError
from sprunec.families.module_lists import blocks

NAME = "default"  # peft's, of an adapter
TOLERANCE, NOISES = 1e-5, 4.0  # of the largest logit; and so many times the arithmetic's own noise
ROWS = 64  # of logits
HALF = (torch.bfloat16, torch.float16)


class Projection(nn.Linear):
    """A linear map whose weight may be stored in fewer bits than it is multiplied in, and may be (in, out)."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, *, turned: bool = False) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape[::-1] if turned else weight.shape
        self.weight, self.bias, self.turned = weight, bias, turned  # type: ignore[assignment]

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return self.product(input, self.weight)

    def product(self, input: Tensor, weight: Tensor) -> Tensor:
        """Do the same with a weight in the place of its own."""
        weight = weight.t() if self.turned else weight
        if weight.dtype == input.dtype or torch.is_autocast_enabled(input.device.type):
            return F.linear(input, weight, self.bias)
        rows = input.flatten(0, -2)  # so that what the function returns is no view, and may be added to in place
        result: Tensor = _Widened.apply(rows, weight, self.bias)  # type: ignore[no-untyped-call]
        return result.view(*input.shape[:-1], -1)


class _Widened(torch.autograd.Function):
    """A product with a frozen weight that is cast for it, and again for the gradient: its cast is not kept."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(input, weight.to(input.dtype), None if bias is None else bias.to(input.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return gradients[0] @ weight.to(gradients[0].dtype), None, None


def as_modules(block: nn.Module) -> dict[str, Projection]:
    """Make a block's products with weights modules again, by path, in place: of a traced one they are operations."""
    if not isinstance(block, fx.GraphModule):
        plain: dict[str, Any] = {path: each for path, each in block.named_modules() if isinstance(each, nn.Linear)}
        made = {path: Projection(each.weight, each.bias) for path, each in plain.items()}
    else:
        made = {}
        for node in list(block.graph.nodes):
            if (read := _read(block, node)) is not None:
                path, input, turned = read
                owner: Any = block.get_submodule(path)
                made.setdefault(path, Projection(owner.weight, getattr(owner, "bias", None), turned=turned))
                weights = [each for each in node.all_input_nodes if each is not input]
                node.op, node.target, node.args, node.kwargs = "call_module", path, (input,), {}
                for each in (each for each in weights if not each.users):
                    block.graph.erase_node(each)
    for path, module in made.items():
        block.set_submodule(path, module)
    if isinstance(block, fx.GraphModule):
        block.recompile()
    return made


def _read(block: fx.GraphModule, node: fx.Node) -> tuple[str, fx.Node, bool] | None:
    """Read what a node multiplies by a module's weight: the module, its input, and whether the weight is (in, out)."""
    given = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | dict(node.kwargs)
    turned = node.target is torch.addmm
    if turned:
        given = dict(zip(("bias", "input", "weight"), node.args, strict=False)) | dict(node.kwargs)
    weight, bias, input = given.get("weight"), given.get("bias"), given.get("input")
    if node.target not in (F.linear, torch.addmm) or not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    path, _, leaf = str(weight.target).rpartition(".")
    owner = block.get_submodule(path)
    own = [None] if getattr(owner, "bias", None) is None else [f"{path}.bias"]
    named = [bias.target if isinstance(bias, fx.Node) and bias.op == "get_attr" else bias]
    return (path, input, turned) if leaf == "weight" and own == named and isinstance(input, fx.Node) else None


@dataclass(frozen=True)
class Adapters:
    """The adapters of a model, by the path of the projection that each stands on."""

    layers: Mapping[str, Any]

    @property
    def parameters(self) -> int:
        """Count what trains."""
        return sum(p.numel() for layer in self.layers.values() for p in layer.parameters() if p.requires_grad)

    def merged(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turn the state of the model, whole, into that of one without adapters, in float32."""
        state, found = dict(weights.items()), {}
        for path, layer in self.layers.items() if state else ():
            down, up = (state.pop(f"{path}.lora_{part}.{NAME}.weight") for part in "AB")
            state[f"{path}.weight"] = merge(layer, state.pop(f"{path}.base_layer.weight"), down, up)
            if f"{path}.base_layer.bias" in state:
                state[f"{path}.bias"] = state.pop(f"{path}.base_layer.bias")
        while state:
            name, tensor = state.popitem()
            found[name] = tensor.float()
        return found

    @torch.no_grad()
    def check(self, logits: Callable[[], Tensor]) -> dict[str, float]:
        """Hold the model with merged weights against the one with adapters; called by all ranks alike.

        Args:
            logits: runs the model in float32, in eval mode.

        Raises:
            PassError: they differ by more than this arithmetic's own noise.
        """
        adapted = logits()
        with self._computed(torch.float32, merged=True):
            merged = logits()
        noise = 0.0
        for found, whole in ((adapted, False), (merged, True)):
            with self._computed(torch.float64, merged=whole):
                noise = max(noise, largest_difference(found, logits()))
        difference = largest_difference(adapted, merged)
        limit = max(TOLERANCE * max(1.0, float(adapted.abs().max())), NOISES * noise)
        if not difference <= limit:
            message = (
                f"with its adapters merged the model's logits differ by {difference:.2g}, and {limit:.2g} is noise"
            )
            raise PassError(f"{message}; lower the learning rate")
        return {"merge_difference": difference, "merge_tolerance": limit, "merge_noise": noise}

    @contextmanager
    def _computed(self, dtype: torch.dtype, *, merged: bool) -> Iterator[None]:
        """Compute projections with adapters in a type meanwhile, with weights that are merged at each, or without."""

        def product(layer: Any, given: tuple[Tensor, ...], result: Tensor) -> Tensor:
            base, input = layer.base_layer, given[0].to(dtype)
            down, up = (getattr(layer, f"lora_{part}")[NAME].weight.to(dtype) for part in "AB")
            weight = merge(layer, base.weight, down, up, dtype) if merged else base.weight.to(dtype)
            bias = None if base.bias is None else base.bias.to(dtype)
            found = F.linear(input, weight.t() if base.turned else weight, bias)
            if not merged:
                found = found + layer.scaling[NAME] * F.linear(F.linear(input, down), up)
            return found.to(result.dtype)

        handles = [layer.register_forward_hook(product) for layer in self.layers.values()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def largest_difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def some_logits(model: Any, batch: Batch) -> Tensor:
    """Run a model on a batch -> the logits of its first positions that have a target."""
    hidden = model.states(**batch.inputs)[batch.targets != IGNORED]
    logits: Tensor = model.project(hidden[:ROWS])
    return logits.double()


def low_rank_sum(layer: Any, input: Tensor) -> Tensor:
    """Map (..., in) to (..., out) as peft's layer does, whose sum is made in place.

    Each tensor that is made and freed between two that are kept for the backward pass leaves a hole in the heap, which
    the next of its size does not fit into: on the CPU three of them take as much memory again.
    """
    down, up = (getattr(layer, f"lora_{part}")[NAME].weight for part in "AB")
    result: Tensor = layer.base_layer(input)
    low, low_up = F.linear(input, down).flatten(0, -2), up.t().to(result.dtype)
    result.flatten(0, -2).addmm_(low, low_up, alpha=layer.scaling[NAME])
    return result


def merge(layer: Any, weight: Tensor, down: Tensor, up: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Add s B A to a layer's weight."""
    delta: Tensor = layer.scaling[NAME] * (up.to(dtype) @ down.to(dtype))
    return weight.to(dtype) + (delta.t() if layer.base_layer.turned else delta)


def adapt(
    model: nn.Module, adapter: Adapter, targets: Collection[str], stored: Callable[[str], torch.dtype], seed: int
) -> Adapters:
    """Freeze a model, and put adapters on the products of its blocks with weights of these names, in place.

    Args:
        stored: in what a weight is stored, by its name.
        seed: of A; B begins at zero.

    Raises:
        InputError: no block multiplies by any of these weights as a whole.
    """
    from peft import LoraConfig, inject_adapter_in_model

    found = {f"{path}.{name}": each for path, block in blocks(model) for name, each in as_modules(block).items()}
    chosen = {path: each for path, each in found.items() if f"{path}.weight" in targets}
    if not chosen:
        raise InputError.in_option("adapter", "no product of what is left is by one of its targets", "name others")
    model.requires_grad_(False)
    for path, each in found.items():
        kind = stored(f"{path}.weight")
        each.weight.data = each.weight.data.to(kind if kind in HALF else torch.float32)
    for tensor in {*model.parameters()} - {each.weight for each in found.values()}:
        tensor.data = tensor.data.float()
    # peft makes an adapter where its base's weight lies, and in its type
    weights = {path: each.weight for path, each in chosen.items()}
    for each in chosen.values():
        each.weight = nn.Parameter(torch.empty(0))
    options = LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=[*chosen], bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(options, model, NAME)
    layers = {path: model.get_submodule(path) for path in chosen}
    for path, layer in layers.items():
        layer.base_layer.weight = weights[path]  # type: ignore[union-attr]
        layer.to(weights[path].device)
        layer.forward = MethodType(low_rank_sum, layer)
    return Adapters(layers)
