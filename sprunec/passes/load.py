"""The model that enters the plan: from a checkpoint, or newly initialised.

A checkpoint with our names is not copied: the artifact links to the user's file, whose content the store verifies. Of
Hugging Face's checkpoints the weights are multiplied back by the roots that are part of them there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from sprunec.checkpoint.reader import open_tensors
from sprunec.checkpoint.writer import adopt_weights
from sprunec.errors import InputError, PassError
from sprunec.families.cpm_ant.blocks import build, initialize
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.fit import check_fit, refuse_unused
from sprunec.families.cpm_ant.head import own_head
from sprunec.families.cpm_ant.huggingface_names import Part, native_shapes, parts
from sprunec.families.cpm_ant.scaling import native_outputs
from sprunec.families.cpm_ant.shapes import expected_tensors
from sprunec.families.model_directory import describe, save_model, save_outputs
from sprunec.passes.job import Job


def run(job: Job) -> dict[str, Any]:
    config = ModelConfig.from_dict(job.options["config"])
    notes = []
    if "checkpoint" in job.files:
        notes = _take(job.files["checkpoint"][0], config, job.out)
    else:
        _check_memory(config)
        model = build(config)
        initialize(model, job.options["seed"])
        save_model(job.out, config, config.everything(), model.state_dict())
    return {"parameters": config.parameters()} | ({"notes": notes} if notes else {})


def _check_memory(config: ModelConfig) -> None:
    """Refuse a model larger than memory: a config is a few bytes, whatever it claims."""
    needed, there = config.parameters() * torch.float32.itemsize, physical_memory()
    if needed > there:
        raise PassError(
            f"a new model of {config.parameters():,} parameters needs {needed / 1e9:,.1f} GB of memory, and this "
            f"machine has {there / 1e9:,.1f} GB; give a smaller config, or a checkpoint"
        )


def physical_memory() -> int:
    """Count the machine's memory, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _take(path: Path, config: ModelConfig, out: Path) -> list[str]:
    """Write the model that a checkpoint holds; return what the user should know about the file."""
    tensors = open_tensors(path)
    unused = check_fit(config, tensors, path)
    head = own_head(config, tensors) if config.tie_word_embeddings else None
    if head is not None:  # a plan finds that out by itself, but for files that torch alone can read
        message = f"{head} differs from the embedding, and the config ties the two"
        raise InputError.at(path, message, 'write "tie_word_embeddings": false in the model\'s config')
    if not tensors.is_whole:  # else the plan has been held against the headers, and knows what to ignore
        refuse_unused(unused, path)
    if all(part == Part(name) for name, part in parts(config, tensors).items()):
        describe(out, config, config.everything())
        adopt_weights(path, out)
    else:
        save_outputs(out, config, config.everything(), native_outputs(config, tensors))
    extra = sorted(native_shapes(config, tensors.shapes()).keys() - expected_tensors(config).keys())
    more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
    return [f"{path.name} has {extra[0]}{more}, which the config doesn't name: ignored"] if extra else []
