"""Run tasks of lm-eval on a model, opened as its users open it, in a process of its own (`lm_eval_process`).

The directory is what the plan emits for `transformers`, or is emitted for this alone; of a dense model that nothing has
changed it is the user's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sprunec.checkpoint.layouts import CONFIG
from sprunec.data.task_files import PACKAGE, read_task_file
from sprunec.durable import read_file
from sprunec.errors import InputError, PassError
from sprunec.families.own_code import is_trusted
from sprunec.file_digests import file_digest
from sprunec.formats.huggingface import PROCESS_BYTES
from sprunec.graph.arithmetic import inside
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Node
from sprunec.graph.needs import Needs, Whole
from sprunec.graph.options import Options
from sprunec.passes import emit
from sprunec.passes.job import Job
from sprunec.passes.measuring.processes import run_script
from sprunec.plan.declared import Pass, PassSpec
from sprunec.plan.export_formats import FORMATS
from sprunec.plan.model_config import read_config
from sprunec.plan.scale import FLOAT

FORM, RESULTS = "huggingface", "results.json"
SCRIPT = "sprunec.passes.measuring.lm_eval_process"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
TOKENS = 512  # of a text: how long a task's are is not known before they are read
LOGITS = 3  # in float32 at once: as they come, as logarithms, of what continues the text


@dataclass(frozen=True, kw_only=True)
class TaskOptions(Options):
    """Tasks of lm-eval, by its release.

    Attributes:
        names: of its own tasks.
        contents: of each task file all that it is made of, in order.
        beside: the content of the tokenizer's files, where the directory is the user's own.
    """

    names: tuple[str, ...] = ()
    contents: tuple[tuple[str, ...], ...] = ()
    beside: tuple[str, ...] = ()
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int
    precision: str
    library: str


def add(build: Builder, spec: PassSpec, role: str, model: str) -> None:
    """Add a node that runs a plan's tasks on a node's model, which is the dense or the small one."""
    tasks = spec.options["tasks"]
    read = [read_task_file(task) if task.is_file() else None for task in tasks if isinstance(task, Path)]
    paths = tuple(task for task in tasks if isinstance(task, Path))
    files = [found.files if found is not None else (path,) for found, path in zip(read, paths, strict=True)]
    given, inputs = {"tasks": paths, "parts": tuple(file for each in files for file in each)}, {"emitted": ""}
    contents = tuple(tuple(file_digest(file) for file in each) for each in files)
    more: dict[str, Any] = {"names": tuple(task for task in tasks if isinstance(task, str)), "contents": contents}
    if (directory := _own_directory(build, model)) is not None:
        beside = tuple(path for each in FORMATS[FORM].options(build.plan)[1].values() for path in each)
        inputs, more["beside"] = {"model": model}, tuple(map(file_digest, beside))
        given |= {"directory": (directory,), "beside": beside}
    elif role == "small" and build.emitting is not None and FORM in build.emitting.options["formats"]:
        inputs["emitted"] = build.roles.emitted
    else:
        inputs["emitted"] = emit.add(build, PassSpec("emit", {"formats": (FORM,), "dtype": "keep"}, ""), model)
    options = build.options(TaskOptions, spec, library=_release(), **more)
    about = ", ".join(task.stem if isinstance(task, Path) else task for task in tasks)
    files_given = {name: each for name, each in given.items() if each}
    name = build.add("evaluate-tasks", options, inputs, role, about=about, files=files_given)
    build.roles.tasks[name] = role


def _own_directory(build: Builder, model: str) -> Path | None:
    """Give the user's directory where a node's model is what it holds, and its config is the plan's."""
    path = build.plan.model.checkpoint
    if build.nodes[model].pass_ != "load" or path is None or not (path / CONFIG).is_file():
        return None
    return path if read_config(str(path / CONFIG))[0] == build.config else None


def _release() -> str:
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return ""


def needs(build: Builder, node: Node) -> Needs:
    """Hold the model, and texts of some length; how many tokens tasks have is known only once they are read."""
    model, options = build.sizes[next(iter(node.inputs.values()))], node.options
    size, rows = float(BYTES[options.precision]) * model.parameters, options.batch_size
    logits = float(LOGITS * FLOAT) * rows * TOKENS * model.config.vocab_size
    memory = {"model": size, "activations": inside(model, rows, TOKENS) + logits, "reopened": PROCESS_BYTES}
    certain, remedy = model.certain(size), "run no tasks here, or on a device with more memory"
    whole = Whole(certain, certain, "the model in memory, to run tasks", remedy)
    return Needs(memory, reads=model.nbytes, whole=whole, counted=False)


def check(node: Node) -> None:
    """Find out, before the run does anything, whether lm-eval has the tasks and their data."""
    _look_up(json.dumps(_tasks(node.options, node.files)), node.options.contents)


@lru_cache(maxsize=4)
def _look_up(settings: str, contents: tuple[tuple[str, ...], ...]) -> None:
    """Do it once for both models; `contents` tell task files that have changed meanwhile."""
    run_apart(json.loads(settings), lambda step, steps: None)


def _tasks(options: TaskOptions, files: Mapping[str, tuple[Path, ...]]) -> dict[str, Any]:
    """Say what to run, as the process is told it."""
    tasks = [*options.names, *(str(path.absolute()) for path in files.get("tasks", ()))]
    return {"tasks": tasks, "num_fewshot": options.num_fewshot, "limit": options.limit, "trusted": is_trusted()}


def run(job: Job[TaskOptions]) -> dict[str, Any]:
    """Raise PassError where lm-eval cannot open the model, or fails."""
    options, own = job.options, job.files.get("directory")
    directory = own[0] if own is not None else job.inputs["emitted"] / FORM
    if not directory.is_dir():
        raise PassError(f"there is no model to run tasks on: {read_file(job.inputs['emitted'] / f'{FORM}.txt')}")
    brings = "auto_map" in json.loads(read_file(directory / CONFIG))
    model = {
        "pretrained": str(directory.absolute()),
        "device": job.device,
        "dtype": DTYPES[options.precision],
        "batch_size": options.batch_size,
        # what has been emitted has code that this package wrote, or that was trusted when it was read
        "trust_remote_code": brings and (own is None or is_trusted()),
    }
    if job.device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()  # the other process has the same device
    found = run_apart(
        _tasks(options, job.files) | {"model": model, "out": str(job.out.absolute() / RESULTS)},
        lambda step, steps: job.report({"of": "request", "step": step, "steps": steps}),
    )
    return {"samples": found["samples"], "parameters": found["parameters"], "tasks": found["tasks"]}


def run_apart(settings: Mapping[str, Any], tell: Callable[[int, int], None]) -> dict[str, Any]:
    """Start the process, and return what it has found.

    Args:
        tell: is told how many requests to the model are done, and how many there are.

    Raises:
        InputError: a task is none of lm-eval's, lacks its data, or would run code that nobody has trusted.
        PassError: lm-eval fails; says how.
    """
    trusted = "1" if settings["trusted"] else "0"
    found = run_script(
        SCRIPT, settings, tell, "lm-eval", {"HF_DATASETS_TRUST_REMOTE_CODE": trusted, "DISABLE_MULTIPROC": "1"}
    )
    if (error := found.get("error")) is None:
        return found
    if "file" in found:
        raise InputError.at(found["file"], error, found["hint"], "bad-task")
    if "hint" in found:
        raise InputError.in_option("tasks", error, found["hint"], "bad-task")
    raise PassError(f"lm-eval cannot run the tasks: {error}")


EVALUATE_TASKS = Pass("evaluate-tasks", 1, TaskOptions, (), "scores", ("model", "emitted"), needs=needs, check=check)
