"""What every choice of a search takes on this device, as a table: in the model that users open, with its cache."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from sprunec.durable import put_file, write_new
from sprunec.families.base import family_of
from sprunec.families.base_config import ModelConfig
from sprunec.families.cards import card_of
from sprunec.formats.huggingface import PROCESS_BYTES
from sprunec.graph.arithmetic import Text, forward
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Node
from sprunec.graph.needs import SINGLE, Needs
from sprunec.graph.options import Options
from sprunec.machine import device_name, processor
from sprunec.passes.job import Job
from sprunec.passes.measuring.probes import MIXED, Probes
from sprunec.passes.measuring.processes import run_script
from sprunec.plan.declared import Pass, PassSpec
from sprunec.plan.search.choices import Choice, choices
from sprunec.plan.search.latency_table import LatencyTable

TABLE, SCRIPT = "latency.json", "sprunec.models.latency_process"
PACKAGES = ("torch", "transformers")
AT_ONCE = 5  # models that have caches at a time


@dataclass(frozen=True, kw_only=True)
class LatencyOptions(Options):
    """What is measured, and what on; see `choices` for the first three.

    Attributes:
        batch, length: texts side by side, and the positions of each: those that a token sees that is decoded.
        prefill: whether all positions of the texts are timed, too.
        dtype: of the weights; empty: as they are stored.
        machine: what else decides how fast it is.
    """

    units: tuple[str, ...]
    grid: Mapping[str, Sequence[int]] = field(default_factory=dict)
    multiple_of: Mapping[str, int] = field(default_factory=dict)
    batch: int
    length: int
    prefill: bool = False
    dtype: str = ""
    machine: Mapping[str, Any]


def lower(build: Builder, spec: PassSpec) -> None:
    add(build, spec, {"table": spec.options["save_table"]})


def add(build: Builder, spec: PassSpec, writes: Mapping[str, Path] | None = None, **given: Any) -> str:
    """Add a node that times the choices of some units in the newest model.

    Args:
        spec: has `LatencyOptions`, but for those in `given`.
        writes: as a node has them.
    """
    about = {"device": build.plan.engine.device, "processor": processor(), "threads": os.environ.get("OMP_NUM_THREADS")}
    machine = about | {"processors": os.cpu_count()} | versions()
    options = build.options(LatencyOptions, spec, machine=machine, **given)
    words = f"batch {options.batch}, length {options.length}"
    return build.add("measure-latency", options, {"model": build.model}, about=words, writes=writes or {})


def versions() -> dict[str, str]:
    """Give the releases of the packages that run the model, of those that are there."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def needs(build: Builder, node: Node) -> Needs:
    """Hold the model, and read it for every choice as often as it takes to be sure."""
    model, options = build.sizes[node.inputs["model"]], node.options
    size = model.item * model.parameters
    cached = card_of(model.config).cache_bytes(model.config, options.length) or 0
    memory = {"model": size, "cached": float(AT_ONCE) * options.batch * cached, "reopened": PROCESS_BYTES}
    each = forward(model, Text(options.batch, options.length), head=True)
    count = 3 + len(choices(model.config, options.units, options.grid, options.multiple_of))
    return Needs(memory, operations={SINGLE: each * count}, counted=False)


def run(job: Job[LatencyOptions]) -> dict[str, Any]:
    """Raise PassError where the model has too few layers to tell them apart."""
    import torch

    options, config, weights = job.options, job.config(), job.weights()
    dtype = options.dtype or str(weights.dtype(next(iter(weights.shapes())))).removeprefix("torch.")
    about = {"batch": options.batch, "length": options.length, "prefill": options.prefill, "dtype": dtype}
    about |= {"device": str(job.place.device), "threads": torch.get_num_threads()}
    found = choices(config, options.units, options.grid, options.multiple_of)

    def tell(done: int, total: int) -> None:
        job.report({"of": "model", "step": done, "steps": total})

    table = measured_table(config, found, about, tell)
    write_new(job.out / TABLE, json.dumps(table, indent=1))
    check = table["check"]
    error = max(abs(check["said"][phase] / check["measured"][phase] - 1) for phase in check["said"])
    return {"milliseconds": 1000 * table["dense"]["decode"], "choices": len(table["sublayers"]), "error": error}


def write(role: str, artifact: Path, inputs: Mapping[str, Path], path: Path) -> None:
    """Write the table to a file of its own."""
    put_file(path, (artifact / TABLE).read_bytes())


def measured_table(
    config: ModelConfig, found: Sequence[Choice], about: Mapping[str, Any], tell: Callable[[int, int], None]
) -> dict[str, Any]:
    """Time a model's choices, and make a table of them as `schemas/latency.schema.json` has it.

    Args:
        about: the settings of `latency_process`, but for what they say of the models.

    Raises:
        PassError: it has too few layers.
    """
    import torch

    probes = Probes(config, found, getattr(torch, about["dtype"]).itemsize)
    times, entries, base = _times(probes, about, tell), dict[str, dict[str, Any]](), dict[str, float]()
    for phase, seconds in times.items():
        base[phase], parts = probes.entries(seconds)
        for part in parts:
            named = {name: part[name] for name in ("sublayer", "layers", "kept")}
            entries.setdefault(json.dumps(named), named)[phase] = part["seconds"]
    asked = {name: about[name] for name in ("dtype", "threads", "batch", "length")}
    document = {"device": device_name(about["device"]), "versions": versions(), **asked}
    document |= {"base": base, "sublayers": list(entries.values())}
    sums = {phase: LatencyTable(document).seconds(phase) for phase in times}
    said = {phase: total(probes.models[MIXED].config) for phase, total in sums.items()}
    document["dense"] = {phase: total(config) for phase, total in sums.items()}
    document["check"] = {"said": said, "measured": {phase: seconds[MIXED] for phase, seconds in times.items()}}
    return document


def _times(probes: Probes, about: Mapping[str, Any], tell: Callable[[int, int], None]) -> dict[str, list[float]]:
    """Give by phase the seconds of each model: the first one's, times how the others compare with it."""
    family, whole = family_of(probes.config), card_of(probes.config).own_code
    with tempfile.TemporaryDirectory(prefix="sprunec-latency-") as folder:
        directories = [str(Path(folder) / str(number)) for number in range(len(probes.models))]
        for directory, probe in zip(directories, probes.models, strict=True):
            family.write_shape(probe.config, Path(directory))
        found = run_script(SCRIPT, {"models": directories, "whole": whole, **about}, tell, "the timing of models")
    times = {}
    for phase, each in found.items():
        first = median(each["seconds"])
        times[phase] = [first, *(first * median(quotients) for quotients in each["quotients"])]
    return times


MEASURE_LATENCY = Pass("measure-latency", 1, LatencyOptions, ("model",), "latencies", lower=lower, needs=needs)
