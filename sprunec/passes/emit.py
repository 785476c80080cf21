"""Write the small model in the forms people use; what is written here is compared before it is handed out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sprunec.model.checkpoint import empty_model, read_kept, read_state, save_model
from sprunec.model.config import local
from sprunec.model.cpm_ant import cache_shapes
from sprunec.passes.bench import config_of, traced
from sprunec.passes.job import Job
from sprunec.rewrite.model_py import model_source
from sprunec.rewrite.surgery import rewrite


def run(job: Job) -> dict[str, Any]:
    sizes = {}
    for name in job.options["formats"]:
        directory = job.out / name
        FORMATS[name](job, directory)
        sizes[name] = sum(file.stat().st_size for file in directory.iterdir())
    return {"parameters": config_of(job).parameters(), "bytes": sizes}


def _sprunec(job: Job, directory: Path) -> None:
    """config.json, safetensors, and model.py from the plan's input model's graphs, cut to what is kept of it."""
    config, kept = config_of(job), read_kept(job.inputs["model"])
    save_model(directory, config, kept, read_state(job.inputs["model"]))
    origin = config_of(job, "source")
    shape = empty_model(origin)
    everything = read_kept(job.inputs["source"])
    kept_here = [local(before, after) for before, after in zip(everything, kept, strict=True)]
    traced_blocks = traced(shape, origin)
    small = rewrite(shape, traced_blocks, kept_here)
    blocks = [small.get_submodule(block.path) for block in traced_blocks]
    source = model_source(blocks, cache_shapes(config))
    (directory / "model.py").write_text(source, encoding="utf-8")


FORMATS: dict[str, Callable[[Job, Path], None]] = {"sprunec": _sprunec}
