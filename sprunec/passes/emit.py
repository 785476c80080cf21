"""Write the small model in the forms people use; what is written here is compared before it is published."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.checkpoint.layouts import weight_files
from sprunec.durable import write_new
from sprunec.errors import FormError
from sprunec.families.cpm_ant.config import LayerKept, ModelConfig, local
from sprunec.passes.job import Job, Options, traced
from sprunec.plan.pass_table import Pass

if TYPE_CHECKING:
    from sprunec.graph.builder import Builder
    from sprunec.plan.plan import PassSpec
    from sprunec.rewrite.trace import TracedBlock


@dataclass(frozen=True, kw_only=True)
class EmitOptions(Options):
    """What to write, and what formats ask for besides."""

    formats: tuple[str, ...]
    dtype: str = ""
    transformers: int = 0
    task: int = 0
    vocab: str = ""


def lower(build: Builder, spec: PassSpec) -> None:
    """It is done last, whatever stands behind it."""
    build.formats, build.dtype = tuple(spec.options["formats"]), spec.options["dtype"]


def run(job: Job[EmitOptions]) -> dict[str, Any]:
    """A form that cannot hold the model leaves a note of why, and the others are written.

    Raises:
        FormError: none of them can.
    """
    from sprunec.formats import cpm_live, huggingface, pt2

    writers: dict[str, Callable[[Job[EmitOptions], Path], dict[str, Any]]] = {
        "sprunec": _sprunec,
        "cpm-live": cpm_live.write,
        "huggingface": huggingface.write,
        "pt2": pt2.write,
    }
    sizes, about, failed = {}, {}, {}
    for name in job.options.formats:
        directory = job.out / name
        try:
            about[name] = writers[name](job, directory)
        except FormError as error:
            shutil.rmtree(directory, ignore_errors=True)
            failed[name] = error
            write_new(job.out / f"{name}.txt", str(error))
            continue
        sizes[name] = sum(file.stat().st_size for file in directory.iterdir())
    if not about:
        raise next(iter(failed.values()))
    return {"parameters": job.config().parameters(), "bytes": sizes, "forms": about}


def _sprunec(job: Job[EmitOptions], directory: Path) -> dict[str, Any]:
    """config.json, safetensors, and model.py from the plan's input model's graphs, cut to what is kept of it."""
    from sprunec.checkpoint.writer import link_weights, write_state
    from sprunec.families.model_directory import describe, open_model_tensors

    config, kept = job.config(), job.kept()
    describe(directory, config, kept)
    if any(file.is_symlink() for file in weight_files(job.inputs["model"])):  # the user's own file
        write_state(open_model_tensors(job.inputs["model"]), directory)
    else:
        link_weights(job.inputs["model"], directory)
    kept_here = tuple(local(before, after) for before, after in zip(job.kept("source"), kept, strict=True))
    write_model_py(directory, job.config("source"), kept_here, config)
    return {}


def write_model_py(
    directory: Path,
    origin: ModelConfig,
    kept: tuple[LayerKept, ...],
    small: ModelConfig,
    blocks: tuple[TracedBlock, ...] | None = None,
) -> None:
    """Cut the traced graphs of `origin` to what is `kept` of it, and print them.

    Args:
        blocks: the traced blocks of `origin`, where they are at hand or were changed.
    """
    from sprunec.families.cpm_ant.blocks import cache_shapes
    from sprunec.families.model_directory import empty_model
    from sprunec.formats.model_py import model_source
    from sprunec.rewrite.surgery import rewrite

    shape = empty_model(origin)
    blocks = blocks or traced(shape, origin)
    rewritten = rewrite(shape, blocks, kept)
    modules = [rewritten.get_submodule(block.path) for block in blocks]
    write_new(directory / "model.py", model_source(modules, cache_shapes(small)))


EMIT = Pass("emit", 5, EmitOptions, ("model", "source"), "emitted", lower=lower)
