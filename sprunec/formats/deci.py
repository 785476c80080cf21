"""The format `deci`: a directory in the form of Nemotron-NAS, for vLLM, where the layers of a Llama may differ.

No class of `transformers` opens it: here a reader does that knows nothing but what is in the directory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.families.base import family_of
from sprunec.families.base_config import ModelConfig
from sprunec.families.huggingface.decilm_files import INSTEAD, obstacles, write
from sprunec.families.huggingface.transformers_config import TransformersConfig
from sprunec.formats.huggingface import PART_BYTES, PLACE, PROCESS_BYTES, SCRIPTS, opened_apart, options
from sprunec.plan.export_formats import Format, Opening, Options, Reopened

if TYPE_CHECKING:
    from torch import Tensor

    from sprunec.checkpoint.reader import Tensors
    from sprunec.families.base import Inputs
    from sprunec.plan.plan import Plan


def beside(plan: Plan) -> Options:
    """Find the tokenizer and what else goes along; no code, which would be another class's."""
    return {}, {role: tuple(f for f in files if f.suffix != ".py") for role, files in options(plan)[1].items()}


def reopen(directory: Path, config: ModelConfig, weights: Tensors) -> Reopened:
    """Open it in float32 by its blocks' configs alone."""
    import torch

    stored = weights.dtype(next(iter(weights)))

    def logits(inputs: list[Inputs]) -> Tensor:
        rows = [batch["input"][0] for batch in inputs]
        return torch.cat(opened_apart("deci", f"{SCRIPTS}.decilm_reader", directory, rows))

    def texts(batch: Inputs) -> list[Inputs]:
        return family_of(config).huggingface_texts(config, {}, batch)

    return Reopened(stored, torch.float32, logits, texts)


def opening(directory: Path, about: Mapping[str, Any]) -> Opening:
    """Say how vLLM is given the directory."""
    code = "from vllm import LLM", "", f'model = LLM("{PLACE}", trust_remote_code=True)'
    remark = "It was read again by the rules of vLLM's loader of DeciLMs; vLLM itself was not run."
    return Opening("vllm", code, " ".join([remark, *(f"In it {each}." for each in about["why"])]))


def shares(config: ModelConfig) -> bool:
    """Tell whether nothing is added: a first layer that has no attention gets one."""
    return isinstance(config, TransformersConfig) and bool(config.layers[config.left[0]].heads)


DECI = Format(
    "deci", write, reopen, package=("transformers", "sprunec[hf]"), obstacles=obstacles, instead=INSTEAD,
    alike=lambda config: ("head", "kv_group"), shares=shares, opens=lambda config: PROCESS_BYTES + PART_BYTES,
    opening=opening, options=beside,
)  # fmt: skip
