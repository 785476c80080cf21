"""What several passes do to get to work: open a model, its traced blocks, the data, the device."""

from __future__ import annotations

from pathlib import Path

from sprunec.data.batches import TextData, load_text_data
from sprunec.engines.device import Place
from sprunec.model.checkpoint import empty_model, load_model, read_config
from sprunec.model.config import ModelConfig
from sprunec.model.cpm_ant import example_inputs
from sprunec.model.frame import CPMAnt
from sprunec.passes.job import Job
from sprunec.rewrite.trace import TracedBlock, trace_blocks


def place_of(job: Job) -> Place:
    return Place.of(job.device, job.options.get("precision", "fp32"))


def open_model(directory: Path, place: Place) -> CPMAnt:
    """The model in float32 on the device: what training and comparing work on."""
    return load_model(directory).float().to(place.device)


def traced(model: CPMAnt, config: ModelConfig) -> tuple[TracedBlock, ...]:
    return trace_blocks(model, example_inputs(config))


def traced_shape(config: ModelConfig) -> tuple[TracedBlock, ...]:
    """The blocks of a config's model, without weights."""
    return traced(empty_model(config), config)


def open_data(job: Job, config: ModelConfig) -> TextData:
    return load_text_data(
        job.inputs["data"],
        prompt_length=config.prompt_length,
        max_length=job.options["max_length"],
        batch_size=job.options["batch_size"],
        seed=job.options["seed"],
    )


def config_of(job: Job, name: str = "model") -> ModelConfig:
    return read_config(job.inputs[name])
