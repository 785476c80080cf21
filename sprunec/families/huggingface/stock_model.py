"""The class that `transformers` has for a config.json, built without memory for its parameters."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sprunec.errors import InputError
from sprunec.families.block_calls import CalledBlock
from sprunec.families.huggingface.recording import record_calls

if TYPE_CHECKING:
    from sprunec.families.huggingface.transformers_config import TransformersConfig


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Build modules without memory for their parameters meanwhile; buffers, which no file has, get their values."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:  # one that is on meta may be tied to this one
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    vars_of_module: Any = nn.Module
    vars_of_module.register_parameter = on_meta
    try:
        with torch.device("cpu"):
            yield
    finally:
        vars_of_module.register_parameter = register


@lru_cache(maxsize=2)
def built_model(source: str, tied: bool | None) -> tuple[Any, tuple[CalledBlock, ...]]:
    """Build the class's own model of a config.json, and see how it calls its blocks.

    Args:
        tied: whether its head is its embedding; None: as the config says.

    Raises:
        InputError: transformers is not installed, does not have the class, or this refuses the config.
        ValueError: it has no causal language model of this kind.
    """
    try:
        from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, __version__
    except ImportError as error:
        message = "a model of transformers needs the package transformers"
        raise InputError.in_option("/model/path", message, "pip install 'sprunec[hf]'") from error
    document = json.loads(source) | {"dtype": "float32", "torch_dtype": "float32"}
    document.pop("auto_map", None)  # what is trusted of it has been registered
    if (kind := document["model_type"]) not in CONFIG_MAPPING:
        message = f"transformers {__version__}, which is installed, has no {kind}"
        raise InputError.in_option("/model/path", message, "pip install --upgrade transformers")
    with _refusals():
        known = AutoConfig.for_model(**document | ({} if tied is None else {"tie_word_embeddings": tied}))
    if type(known) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError("it is no causal language model")
    with _refusals():
        whole = build_stock(known)
    return whole, record_calls(whole)


@contextmanager
def _refusals() -> Iterator[None]:
    """Make one error of whatever a class has against its config.json."""
    try:
        yield
    except Exception as error:
        if "can't allocate memory" in str(error):
            raise  # no config.json is to blame for that
        message = (
            f"its class cannot be built from its config.json: {type(error).__name__}: {' '.join(str(error).split())}"
        )
        hint = "give the config.json that belongs to the weights"
        raise InputError.in_option("/model/path", message, hint, "bad-config") from error


def build_stock(known: Any) -> Any:
    """Build the model of a config of `transformers`, its parameters on the meta device."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    # Torch's own attention; products spelled out where a class has no other, or would leave its caps out.
    capped, able = (
        getattr(known, "attn_logit_softcapping", None),
        MODEL_FOR_CAUSAL_LM_MAPPING[type(known)]._supports_sdpa,
    )
    attention = "sdpa" if able and not capped else "eager"
    with parameters_on_meta():
        whole = AutoModelForCausalLM.from_config(known, attn_implementation=attention).float().eval()
    for module in whole.modules():
        if isinstance(module, nn.Dropout):  # its noise is no function of seed and step, as all else in training is
            module.p = 0.0
    return whole


def build_block(known: Any, block: CalledBlock, index: int, changes: Mapping[str, int]) -> nn.Module | None:
    """Build a block by a config with some other sizes, on the meta device; None where its class refuses them."""
    changed = copy.copy(known)
    try:
        for key, size in changes.items():
            setattr(changed, key, size)
        with torch.device("meta"):
            found: nn.Module = type(block.module)(changed, index)
    except Exception:  # whatever a class says of sizes that it cannot have
        return None
    return found


def stock_model(config: TransformersConfig) -> Any:
    """Give the class's own model of the plan's input model; whoever changes it copies it."""
    return built_model(config.source, config.tie_word_embeddings)[0]


def called(config: TransformersConfig) -> tuple[CalledBlock, ...]:
    """List its blocks, and how it calls them."""
    return built_model(config.source, config.tie_word_embeddings)[1]


def undivided(config: TransformersConfig) -> str:
    """Say why a class cannot keep the documents of a row apart; "" where it can."""
    parameters = inspect.signature(type(stock_model(config)).forward).parameters
    if "position_ids" not in parameters:
        return f"{stock_model(config).__class__.__name__} takes no position_ids"
    for block in called(config):
        hidden, *others = block.calls["forward"].inputs.values()
        if not any(len(each.shape) == 4 and {*each.shape[-2:]} == {hidden.shape[1]} for each in others):
            return f"{block.path} is given no mask of which position sees which"
    return ""
