"""The model that enters the plan: from a checkpoint, whose other tensors are ignored, or newly initialised."""

from __future__ import annotations

from typing import Any

from sprunec.model.checkpoint import empty_model, fill, read_state, save_model
from sprunec.model.config import ModelConfig
from sprunec.model.cpm_ant import build, initialize
from sprunec.model.shapes import expected_tensors
from sprunec.passes.job import Job


def run(job: Job) -> dict[str, Any]:
    config = ModelConfig.from_dict(job.options["config"])
    if "checkpoint" in job.files:
        path = job.files["checkpoint"][0]
        expected = expected_tensors(config)
        state = {name: tensor for name, tensor in read_state(path).items() if name in expected}
        fill(empty_model(config), state, path)
    else:
        model = build(config)
        initialize(model, job.options["seed"])
        state = model.state_dict()
    save_model(job.out, config, config.everything(), state)
    return {"parameters": config.parameters()}
