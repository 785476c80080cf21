"""Blocks that `torch.compile` makes kernels of, to train: a wait in front of the first step, then less time for each.

Kernels are kept by torch on the disk, so that the next pass, or run, of blocks of the same shapes waits less.
"""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InvalidCxxCompiler
from torch.utils._triton import has_triton

from sprunec.engines.device import Place
from sprunec.errors import InputError
from sprunec.families.module_lists import blocks

OPTION, REMEDY = "/engine/compile", "leave it out: blocks then run as they are"
BESIDE = 8  # more kinds of a block than there are blocks, as torch counts them, before it would give up


def check_compiler(place: Place) -> None:
    """Raise InputError where there is nothing that turns what torch generates into kernels."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    if place.device.type == "cuda" and not has_triton():
        message = "torch.compile needs triton, which is not installed or does not know this GPU"
        raise InputError.in_option(OPTION, message, f"pip install triton; or {REMEDY}")
    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        message = "torch.compile needs a C++ compiler, and found none"
        raise InputError.in_option(OPTION, message, f"install g++, or name one in CXX; or {REMEDY}") from None


def compile_blocks(model: nn.Module) -> None:
    """Compile what the blocks of a model compute, in place; what is hooked on a block stays outside."""
    torch._dynamo.reset()  # what earlier passes had compiled would count, and stay in memory
    found, config = [block for _, block in blocks(model)], torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, len(found) + BESIDE)
    config.skip_nnmodule_hook_guards = False  # blocks of one code differ by what is hooked inside, to be distilled
    warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor that is not a leaf")  # gates are none
    for block in found:
        block.forward = Compiled(block.forward)


class Compiled:
    """A block's forward, compiled where gradients are asked for; without them, as on held-out text, as it was."""

    def __init__(self, forward: Any) -> None:
        self._forward, self._compiled = forward, cast(Any, torch.compile(forward))

    def __call__(self, *args: Any) -> Any:
        """Raise InputError where torch cannot compile it."""
        if not torch.is_grad_enabled():
            return self._forward(*args)
        try:
            return self._compiled(*map(_laid_out, args))
        except TorchDynamoException as error:
            why = " ".join(str(error).split("\n\n")[0].split())
            message = f"torch.compile does not take a block of this model: {why}"
            raise InputError.in_option(OPTION, message, REMEDY) from None


def _laid_out(given: Any) -> Any:
    """Give a tensor of a class of its own memory for all that it shows: guards read the strides of no other."""
    if not isinstance(given, Tensor) or type(given) is Tensor:
        return given
    return given.contiguous().as_subclass(type(given))
