"""Run lm-eval in a process of its own: what it prints is not ours, and it can be ended at once.

    python -m sprunec.passes.measuring.lm_eval_process SETTINGS

SETTINGS is JSON: `tasks`, names and paths of task files; whether these are `trusted` to run code; to run them and not
only to look them up, the `model` as lm-eval's class for `transformers` takes it, and where the results go, `out`. On
stdout come lines of JSON: `[requests done, requests]`, and last an object, what was found or the error.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from sprunec.data.task_files import is_task_file, mappings, read_task_file
from sprunec.errors import InputError, show
from sprunec.families.own_code import FLAG

KEPT = ("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
BAR = "Running"  # how the names of lm-eval's bars begin that count requests to the model
CACHE = "its data must be in the local cache of Hugging Face (HF_HOME): run it once where there is a network"


class TaskError(Exception):
    """A task cannot be had; `document` is what is told of it."""

    def __init__(self, task: str, message: str, hint: str) -> None:
        place = {"file": task} if is_task_file(task) else {}
        self.document = {"error": message, "hint": hint} | place


def main() -> None:
    """Do what the command line asks for; whatever prints meanwhile prints on stderr."""
    told = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    settings = json.loads(sys.argv[1])
    try:
        _hear_bars(lambda done, total: print(json.dumps([done, total]), file=told))
        found = run_tasks(settings)
    except TaskError as error:
        found = error.document
    except Exception as error:
        found = {"error": _words(error)}
    print(json.dumps(found), file=told)


def _hear_bars(tell: Callable[[int, int], None]) -> None:
    """Let all bars of tqdm draw nothing, and those that count requests tell how far they are.

    Windows of a text that is longer than the model's have a bar for each batch: these are counted together.
    """
    from lm_eval import utils
    from tqdm import tqdm

    windows, close, done = utils.get_rolling_token_windows, tqdm.close, 0
    there = 0

    def counted(*given: Any, **named: Any) -> Iterator[Any]:
        nonlocal there
        for window in windows(*given, **named):
            there += 1
            yield window

    def display(bar: Any, *_: Any, **__: Any) -> None:
        if bar.total and str(bar.desc).startswith(BAR):
            tell(*((done + bar.n, there) if done < there else (bar.n, bar.total)))

    def closed(bar: Any) -> None:
        nonlocal done
        is_open = not getattr(bar, "disable", True)  # it is closed again when it is forgotten
        close(bar)
        if is_open and done < there and str(bar.desc).startswith(BAR):
            done += bar.total

    utils.get_rolling_token_windows, tqdm.display, tqdm.close = counted, display, closed


def run_tasks(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Look tasks up, and run them if there is a model; write lm-eval's own results, and return the scores."""
    from lm_eval.tasks import TaskManager

    trusted, cache = settings["trusted"], tempfile.mkdtemp()
    if not trusted:
        _confine()
    specs = [_read(task, trusted, cache) if is_task_file(task) else task for task in settings["tasks"]]
    by_name = any(isinstance(spec, str) or "group" in spec for spec in specs)  # else lm-eval's own are not looked for
    manager = TaskManager(include_defaults=by_name)
    if "model" not in settings:
        for task, spec in zip(settings["tasks"], specs, strict=True):
            _load(manager, task, spec)
        return {}
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model = HFLM(**settings["model"])
    more = {key: settings[key] for key in ("num_fewshot", "limit")}
    found = simple_evaluate(
        model=model, tasks=specs, task_manager=manager, batch_size=model.batch_size, log_samples=False, **more
    )
    results = {key: found[key] for key in KEPT if key in found} | _releases()
    Path(settings["out"]).write_text(json.dumps(_portable(results), indent=2, default=_plain), encoding="utf-8")
    samples = sum(each["effective"] for each in found["n-samples"].values())
    return {"samples": samples, "parameters": model.model.num_parameters(), "tasks": scores(found)}


def _confine() -> None:
    """Let templates reach values only: as lm-eval has them they can reach all of Python."""
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    own = utils.env
    utils.env = SandboxedEnvironment(
        loader=own.loader, undefined=own.undefined, keep_trailing_newline=own.keep_trailing_newline
    )
    utils.env.filters.update(own.filters)


def _read(task: str, trusted: bool, cache: str) -> dict[str, Any]:
    """Read a task file; its data is read anew, and leaves nothing in the user's cache."""
    from lm_eval.api.registry import METRIC_REGISTRY

    import_module("lm_eval.api.metrics")  # fills the table
    try:
        config = read_task_file(Path(task), _imported if trusted else None).config
    except InputError as error:
        found = error.diagnostics[0]
        raise TaskError(task, f"{found.place}: {found.message}", found.hint) from error
    for each in mappings(config):
        if "data_files" in (given := each.get("dataset_kwargs") or {}):
            each["dataset_kwargs"] = given | {"cache_dir": cache}
        name = each.get("metric")
        if isinstance(name, str) and not trusted and name not in METRIC_REGISTRY:
            message = f"the metric {show(name)} is none of lm-eval's own: code of the hub would be run for it"
            raise TaskError(task, message, f"run with {FLAG} if you trust it")
    return config


def _imported(name: str, folder: Path) -> Any:
    """Give the function `module.name` of a Python file beside a task file, or of an installed package."""
    module, _, function = name.rpartition(".")
    file = folder / f"{module.replace('.', '/')}.py"
    spec = importlib.util.spec_from_file_location(str(file.with_suffix("")), file) if file.is_file() else None
    if spec is None or spec.loader is None:
        return getattr(import_module(module), function)
    if spec.name not in sys.modules:
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
    return getattr(sys.modules[spec.name], function)


def _load(manager: Any, task: str, spec: Any) -> None:
    """Make one task, with its data; raise TaskError where that cannot be done."""
    if isinstance(spec, str) and spec not in manager.task_index:
        raise TaskError(task, f"lm-eval has no task {show(task)}", "`lm-eval ls tasks` lists them all")
    try:
        manager.load([spec])
    except Exception as error:
        if isinstance(spec, str):
            raise TaskError(task, f"the task {show(task)} cannot be loaded: {_words(error)}", CACHE) from error
        hint = "mend it: lm-eval's docs/task_guide.md says what such a file has"
        raise TaskError(task, f"lm-eval cannot make this task: {_words(error)}", hint) from error


def scores(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Give for each task and metric its value, standard error (None: not known), and number of samples."""
    tasks: dict[str, dict[str, Any]] = {}
    for name, metrics in {**found["results"], **found.get("groups", {})}.items():
        samples = found["n-samples"].get(name, {}).get("effective")
        for key, value in metrics.items():
            metric, _, kept = key.partition(",")
            if not kept or metric.endswith("_stderr") or (value := _number(value)) is None:
                continue
            shown, error = metric if kept == "none" else f"{metric} ({kept})", metrics.get(f"{metric}_stderr,{kept}")
            row = {"value": value, "stderr": _number(error), "samples": samples}
            tasks.setdefault(str(name), {})[shown] = row
    return tasks


def _number(value: Any) -> float | None:
    value = _plain(value) if hasattr(value, "item") else value
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _portable(value: Any) -> Any:
    """Leave of paths of this machine the last names."""
    if isinstance(value, Mapping):
        return {str(key): _portable(each) for key, each in value.items() if key not in ("cache_dir", "config_source")}
    if isinstance(value, list | tuple):
        return [_portable(each) for each in value]
    is_path = isinstance(value, str) and os.path.isabs(value) and os.path.exists(value)
    return os.path.basename(value) if is_path else value


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else getattr(value, "__name__", str(value))


def _releases() -> dict[str, str]:
    from importlib.metadata import version

    return {f"{name}_version": version(name) for name in ("lm_eval", "transformers", "datasets")}


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


if __name__ == "__main__":
    main()
