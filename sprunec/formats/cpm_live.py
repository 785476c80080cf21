"""The form `cpm-live`: a `.pt` state dict and a JSON config that CPM-Live's own classes load, strictly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from sprunec.checkpoint.reader import read_state
from sprunec.checkpoint.torch_writer import write_pt
from sprunec.durable import read_file, write_new
from sprunec.errors import FormError
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.model import CPMAnt
from sprunec.families.cpm_ant.uniform import HEAD_APART, cpm_live_config
from sprunec.families.model_directory import empty_model, fill, open_model_tensors
from sprunec.formats.folding import even_of, folded, stored_dtype
from sprunec.passes.bench import config_of
from sprunec.passes.job import Job

WEIGHTS, CONFIG = "model.pt", "config.json"


def write(job: Job, directory: Path) -> dict[str, Any]:
    """Raises FormError where the layers differ, or the head is no embedding, which one config cannot say."""
    config, state = config_of(job), open_model_tensors(job.inputs["model"])
    if not config.tie_word_embeddings:
        raise FormError(f"the form cpm-live cannot hold this model: {HEAD_APART}")
    even, dtype = even_of(config, "cpm-live"), stored_dtype(state, job.options["dtype"])
    directory.mkdir()
    document = cpm_live_config(even, half=dtype == torch.float16)
    write_new(directory / CONFIG, json.dumps(document, indent=1))
    write_pt(folded(config, state, job.options["dtype"]), directory / WEIGHTS)
    return {"dtype": str(dtype).removeprefix("torch.")}


def read(directory: Path) -> CPMAnt:
    """The model as its config and weights say, in eval mode; divisors follow from the widths."""
    config = ModelConfig.from_dict(json.loads(read_file(directory / CONFIG)))
    model = empty_model(config)
    fill(model, read_state(directory / WEIGHTS), directory / WEIGHTS)
    return model.eval()
