"""The class that `transformers` has for a config.json, built without memory for its parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from sprunec.errors import InputError
from sprunec.families.block_calls import CalledBlock
from sprunec.families.huggingface.recording import record_calls
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
def _built(source: str, tied: bool) -> tuple[Any, tuple[CalledBlock, ...]]:
    """Build the class's own model of a config.json, and see how it calls its blocks.

    Raises:
        InputError: transformers is not installed, or does not have the class.
    """
    try:
        from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, __version__
    except ImportError as error:
        message = "a model of transformers needs the package transformers"
        raise InputError.in_option("/model/path", message, "pip install 'sprunec[hf]'") from error
    document = json.loads(source) | {"tie_word_embeddings": tied, "dtype": "float32", "torch_dtype": "float32"}
    if (kind := document["model_type"]) not in CONFIG_MAPPING:
        message = f"transformers {__version__}, which is installed, has no {kind}"
        raise InputError.in_option("/model/path", message, "pip install --upgrade transformers")
    config = AutoConfig.for_model(**document)
    with parameters_on_meta():
        whole = AutoModelForCausalLM.from_config(config, attn_implementation=_attention(config)).float().eval()
    return whole, record_calls(whole)


def _attention(config: Any) -> str:
    """Choose torch's own attention, or products spelled out: where the class has no other, or leaves its caps out."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    able = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_sdpa
    return "sdpa" if able and not getattr(config, "attn_logit_softcapping", None) else "eager"


def stock_model(config: TransformersConfig) -> Any:
    """Give the class's own model of the plan's input model; whoever changes it copies it."""
    return _built(config.source, config.tie_word_embeddings)[0]


def called(config: TransformersConfig) -> tuple[CalledBlock, ...]:
    """List its blocks, and how it calls them."""
    return _built(config.source, config.tie_word_embeddings)[1]
