"""Write the small model in the forms people use; what is written here is compared before it is published."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sprunec.checkpoint.layouts import weight_files
from sprunec.checkpoint.writer import link_weights, write_state
from sprunec.durable import write_new
from sprunec.errors import FormError
from sprunec.families.cpm_ant.blocks import cache_shapes
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.model_directory import describe, empty_model, open_model_tensors, read_kept
from sprunec.formats import cpm_live, huggingface, pt2
from sprunec.formats.model_py import model_source
from sprunec.passes.bench import config_of, traced
from sprunec.passes.job import Job
from sprunec.rewrite.surgery import rewrite
from sprunec.rewrite.trace import TracedBlock
from sprunec.units import Cut


def run(job: Job) -> dict[str, Any]:
    """A form that cannot hold the model leaves a note of why, and the others are written.

    Raises:
        FormError: none of them can.
    """
    sizes, about, failed = {}, {}, {}
    for name in job.options["formats"]:
        directory = job.out / name
        try:
            about[name] = FORMATS[name](job, directory)
        except FormError as error:
            shutil.rmtree(directory, ignore_errors=True)
            failed[name] = error
            write_new(job.out / f"{name}.txt", str(error))
            continue
        sizes[name] = sum(file.stat().st_size for file in directory.iterdir())
    if not about:
        raise next(iter(failed.values()))
    return {"parameters": config_of(job).parameters(), "bytes": sizes, "forms": about}


def _sprunec(job: Job, directory: Path) -> dict[str, Any]:
    """config.json, safetensors, and model.py from the plan's input model's graphs, cut to what is kept of it."""
    config, kept = config_of(job), read_kept(job.inputs["model"])
    describe(directory, config, kept)
    if any(file.is_symlink() for file in weight_files(job.inputs["model"])):  # the user's own file
        write_state(open_model_tensors(job.inputs["model"]), directory)
    else:
        link_weights(job.inputs["model"], directory)
    write_model_py(directory, config_of(job, "source"), kept.inside(read_kept(job.inputs["source"])), config)
    return {}


def write_model_py(
    directory: Path,
    origin: ModelConfig,
    kept: Cut,
    small: ModelConfig,
    blocks: tuple[TracedBlock, ...] | None = None,
) -> None:
    """Cut the traced graphs of `origin` to what is `kept` of it, and print them.

    Args:
        blocks: the traced blocks of `origin`, where they are at hand or were changed.
    """
    shape = empty_model(origin)
    blocks = blocks or traced(shape, origin)
    rewritten = rewrite(shape, blocks, kept)
    modules = [rewritten.get_submodule(block.path) for block in blocks]
    write_new(directory / "model.py", model_source(modules, cache_shapes(small)))


FORMATS: dict[str, Callable[[Job, Path], dict[str, Any]]] = {
    "sprunec": _sprunec,
    "cpm-live": cpm_live.write,
    "huggingface": huggingface.write,
    "pt2": pt2.write,
}
