"""report.json: what was asked, what was done, and how the models compare; `schemas/report.schema.json` describes it."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sprunec.checkpoint.hub import snapshot_origin
from sprunec.durable import read_file, write_atomically
from sprunec.errors import SprunecError
from sprunec.execution.model_card import base_name, written_plan
from sprunec.execution.store import Artifact, strict_json
from sprunec.families.cards import read_config
from sprunec.graph.graph import Graph, Node
from sprunec.machine import about_machine
from sprunec.passes.measuring.compare_format import COMPARED as FORM_COMPARED
from sprunec.plan.declared import PASSES
from sprunec.units import Kept

SPEEDS = ("tokens_per_second", "tokens_per_second_spread", "relative_speed")
MEASURES = ("parameters", "loss", "perplexity", *SPEEDS, "sample", "samples")
SHA256 = re.compile("[0-9a-f]{64}")
NOT_MEASURED: dict[str, Any] = dict.fromkeys(MEASURES)

COUNTED_IN = {"num_heads": "head", "dim_ff": "dim_ff"}  # of the input model, what `kept` is a part of


@dataclass
class Report:
    """A run's report, growing pass by pass."""

    graph: Graph
    out: Path
    data: dict[str, Any]

    @classmethod
    def start(cls, graph: Graph, out: Path, device: str) -> Report:
        source = graph.node(graph.roles.source)
        layers = read_config(source.options.config).layers
        counts = {key: [layer.counts.get(unit, 0) for layer in layers] for key, unit in COUNTED_IN.items()}
        most = {key: max(each, default=0) for key, each in counts.items()}
        data: dict[str, Any] = {
            "status": "running",
            "plan": graph.plan,
            "versions": versions(),
            "passes": [],
            "models": {},
            "comparison": None,
            "formats": {},
            "kept": {"attention": {}, "feed_forward": {}},
            "budgets": [],
            "config": most | {"num_layers": len(layers)},
            "error": None,
        }
        hub = [origin for path in source.files.get("checkpoint", ()) if (origin := snapshot_origin(path))]
        data |= {"hub": hub[0]} if hub else {}
        base = base_name({"plan": graph.resolved} | ({"hub": hub[0]} if hub else {}))
        made_of = {"plan": written_plan(graph.resolved, base), "files": input_files(graph)}
        return cls(graph, out, data | {"provenance": made_of | {"machine": about_machine(device)}})

    @property
    def status(self) -> str:
        return str(self.data["status"])

    def add(self, node: Node, artifact: Artifact, cached: bool, seconds: float) -> dict[str, Any]:
        """Note that a node is done, and what that says about the run; return its metrics with the node's notes."""
        metrics, roles = dict(artifact.manifest["metrics"]), self.graph.roles
        if notes := [*node.notes, *metrics.get("notes", [])]:
            metrics["notes"] = notes
        entry = {"name": node.name, "pass": node.pass_, "digest": node.digest, "cached": cached}
        self.data["passes"].append(entry | {"seconds": seconds, "metrics": metrics})
        if (report := PASSES[node.pass_].report) is not None:
            report(self.data, node, metrics)
        for role in (role for role, name in roles.models.items() if name == node.name):
            self.data["models"][role] = {key: metrics.get(key) for key in MEASURES}
        if node.name in roles.tasks:
            model = self.data["models"].setdefault(
                roles.tasks[node.name], NOT_MEASURED | {"parameters": metrics["parameters"]}
            )
            model["tasks"] = model.get("tasks", {}) | metrics["tasks"]
        if node.name == roles.source:  # what a model weighs is known before, or without, an evaluation
            self.data["models"]["dense"] = NOT_MEASURED | {"parameters": metrics["parameters"]}
        if node.name == roles.final:
            layers = list(enumerate(Kept.from_json(json.loads(read_file(artifact.path / "kept.json")))))
            self.data["kept"] = {
                "attention": {str(i): list(units["head"]) if "head" in units else None for i, units in layers},
                "feed_forward": {str(i): len(units["dim_ff"]) if "dim_ff" in units else None for i, units in layers},
            }
            if roles.origin:
                self.data["models"]["masked"] = NOT_MEASURED | {"parameters": self.graph.parameters[0]}
                config = read_config(json.loads(read_file(artifact.path / "config.json")))
                self.data["models"]["small"] = NOT_MEASURED | {"parameters": config.parameters()}
        return metrics

    def failed(self, node: Node, error: SprunecError) -> None:
        """Note what a comparison has measured that failed, and why an emitted format is not published."""
        measured, report = getattr(error, "metrics", {}), PASSES[node.pass_].report
        if measured and report is not None:
            report(self.data, node, measured)
        if (form := getattr(node.options, "form", None)) is not None:
            self.data["formats"][form] = {key: measured.get(key) for key in FORM_COMPARED} | {"error": str(error)}

    def failed_forms(self) -> dict[str, str]:
        """Say by format why it is not published."""
        return {form: found["error"] for form, found in self.data["formats"].items() if "error" in found}

    def has_no_form(self) -> bool:
        """Tell whether every format that was to be emitted has failed."""
        return set(self.graph.node(self.graph.roles.emitted).options.formats) <= self.failed_forms().keys()

    def end(self, status: str, error: str | None = None) -> None:
        self.data["status"], self.data["error"] = status, error
        self.save()

    def origin(self, made: str) -> dict[str, Any]:
        """Make the note of an emitted model, once all passes are done: see `checkpoint/provenance.py` for the file.

        Nothing in it depends on how often the run was stopped, but when the model was `made`.
        """
        graph, data, measured = self.graph, self.data, ("parameters", "loss", "perplexity")
        note = {
            "plan": graph.resolved,
            "checkpoint": graph.node(graph.roles.source).options.checkpoint or None,
            "made": made,
            "versions": data["versions"],
            "passes": [{key: entry[key] for key in ("name", "pass", "digest")} for entry in data["passes"]],
            "models": {role: {key: found[key] for key in measured} for role, found in data["models"].items() if found},
        } | {key: data[key] for key in ("comparison", "formats", "kept", "budgets", "hub") if key in data}
        return dict(json.loads(strict_json(note)))

    def save(self) -> None:
        write_atomically(self.out / "report.json", strict_json(self.data))


def input_files(graph: Graph) -> list[dict[str, str]]:
    """List the user's files that the run depends on, each with the sha256 that its pass knows it by."""
    found = dict[Path, str]()
    for node in graph.nodes:
        for role, paths in node.files.items():
            known = getattr(node.options, "content" if role == "paths" else role, None)
            digests = known if isinstance(known, tuple) else [known] * len(paths)
            pairs = zip(paths, digests, strict=False)
            found |= {path: digest for path, digest in pairs if isinstance(digest, str) and SHA256.fullmatch(digest)}
    return [{"path": str(path), "sha256": digest} for path, digest in found.items()]


def mark_interrupted(out: Path) -> None:
    """Say so in the report of a run that cannot do it itself any more; a report that cannot be read stays as it is."""
    with suppress(OSError, ValueError, TypeError):
        report = json.loads(read_file(out / "report.json"))
        write_atomically(out / "report.json", strict_json({**report, "status": "interrupted"}))


@cache
def versions() -> Mapping[str, str]:
    found = {"python": platform.python_version()}
    for name in ("sprunec", "torch", "safetensors", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
