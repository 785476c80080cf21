"""report.json: what was asked, what was done, and how the models compare; `schemas/report.schema.json` describes it."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from sprunec.durable import read_file, write_atomically
from sprunec.errors import SprunecError
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.graph.graph import Graph, Node
from sprunec.graph.store import Artifact, strict_json
from sprunec.units import Kept

COMPARED = (
    "max_abs_difference",
    "tolerance",
    "tokens",
    "float32_difference",
    "float32_tolerance",
    "float32_noise",
    "largest_logit",
)
FORM_COMPARED = ("max_abs_difference", "tolerance", "noise", "tokens", "dtype")
SPEEDS = ("tokens_per_second", "tokens_per_second_spread", "relative_speed")
MEASURES = ("parameters", "loss", "perplexity", *SPEEDS, "sample")


@dataclass
class Report:
    """A run's report, growing pass by pass."""

    graph: Graph
    out: Path
    data: dict[str, Any]
    _settled: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def start(cls, graph: Graph, out: Path) -> Report:
        shape = dict(graph.node(graph.roles["source"]).options["config"])
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
            "config": {key: shape[key] for key in ("num_heads", "dim_ff", "num_layers")},
            "error": None,
        }
        return cls(graph, out, data)

    @property
    def status(self) -> str:
        return str(self.data["status"])

    def add(self, node: Node, artifact: Artifact, cached: bool, seconds: float) -> None:
        metrics = with_notes(node, artifact.metrics)
        entry = {"name": node.name, "pass": node.pass_, "digest": node.digest, "cached": cached}
        self.data["passes"].append(entry | {"seconds": seconds, "metrics": metrics})
        if node.pass_ in ("compare", "compare-format"):
            self._compared(metrics)
        if node.pass_ == "train-mask":
            self._settled[node.name] = metrics["budgets"]
        if node.pass_ == "binarize":
            self._binarized(node, metrics)
        for role in ("dense", "masked", "small"):
            if self.graph.roles.get(role) == node.name:
                self.data["models"][role] = {key: metrics.get(key) for key in MEASURES}
        if node.pass_ == "measure-speed":
            for role, speeds in metrics["models"].items():
                self.data["models"][role] |= {key: speeds[key] for key in SPEEDS}
        if node.name == self.graph.roles["source"]:
            self._size("dense", metrics["parameters"])
        if node.name == self.graph.roles["final"]:
            self._kept(artifact.path)
            if "origin" in self.graph.roles:
                self._size("masked", self.graph.parameters[0])
                self._size("small", read_parameters(artifact.path))

    def _compared(self, metrics: Mapping[str, Any]) -> None:
        """The worst of all comparisons of the run; those of emitted forms beside it, each by itself.

        What an artifact of an earlier release does not know stays out.
        """
        if "form" in metrics:
            found = {key: metrics[key] for key in FORM_COMPARED if key in metrics}
            self.data["formats"][metrics["form"]] = self.data["formats"].get(metrics["form"], {}) | found
            return
        before = self.data["comparison"] or {}
        worst = max(before, metrics, key=lambda found: _severity(found.get("worst_block_difference", -1.0)))
        known = {key: [found[key] for found in (metrics, before) if key in found] for key in COMPARED}
        merged = {key: max(values, key=_severity) for key, values in known.items() if values}
        self.data["comparison"] = merged | {key: worst[key] for key in ("worst_block", "worst_block_difference")}

    def form_failed(self, node: Node, error: SprunecError) -> None:
        """Note why an emitted form is not published; of any other node, nothing."""
        form = node.options.get("form")
        if form is not None:
            measured = getattr(error, "metrics", {})
            self.data["formats"][form] = {key: measured.get(key) for key in FORM_COMPARED} | {"error": str(error)}

    def failed_forms(self) -> dict[str, str]:
        """By form, why it is not published."""
        return {form: found["error"] for form, found in self.data["formats"].items() if "error" in found}

    def has_no_form(self) -> bool:
        """Whether every form that was to be emitted has failed."""
        emitted = self.graph.node(self.graph.roles["emitted"]).options["formats"]
        return set(emitted) <= self.failed_forms().keys()

    def _binarized(self, node: Node, metrics: Mapping[str, Any]) -> None:
        """Asked and got, beside what the gates expected when their training ended."""
        scores = node.inputs["scores"]
        learned = {row["name"]: row for row in self._settled.get(scores, [])}
        for row in metrics["budgets"]:
            soft = row if "expected" in row else learned.get(row["name"], {})
            self.data["budgets"].append(
                {
                    "pass": scores,
                    "name": row["name"],
                    "asked": row["asked"],
                    "target": soft.get("target", row["target"]),
                    "expected": soft.get("expected"),
                    "got": row["got"],
                    "distance": soft.get("distance"),
                    "settled": soft.get("settled", True),
                    "undecided": soft.get("undecided", 0),
                }
            )

    def _size(self, role: str, parameters: int) -> None:
        """What a model weighs is known before, or without, an evaluation."""
        self.data["models"][role] = dict.fromkeys(MEASURES) | {"parameters": parameters}

    def _kept(self, directory: Path) -> None:
        self.data["kept"] = kept_document(Kept.from_json(json.loads(read_file(directory / "kept.json"))))

    def on_target(self) -> bool:
        return all(row["settled"] for row in self.data["budgets"])

    def end(self, status: str, error: str | None = None, comparison: Mapping[str, Any] | None = None) -> None:
        self.data["status"], self.data["error"] = status, error
        if comparison is not None:
            self._compared(comparison)
        self.save()

    def save(self) -> None:
        write_atomically(self.out / "report.json", strict_json(self.data))


def mark_interrupted(out: Path) -> None:
    """Say so in the report of a run that cannot do it itself any more; a report that cannot be read stays as it is."""
    with suppress(OSError, ValueError, TypeError):
        report = json.loads(read_file(out / "report.json"))
        write_atomically(out / "report.json", strict_json({**report, "status": "interrupted"}))


def _severity(value: float | None) -> float:
    """A number that is none, which the store has as null, is worse than any that is."""
    return math.inf if value is None or math.isnan(value) else value


def with_notes(node: Node, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics, their `notes` joined with what the graph knows about the node."""
    notes = [*node.notes, *metrics.get("notes", [])]
    return dict(metrics) | ({"notes": notes} if notes else {})


def read_parameters(directory: Path) -> int:
    return ModelConfig.from_dict(json.loads(read_file(directory / "config.json"))).parameters()


def kept_document(kept: Kept) -> dict[str, Any]:
    """Heads by index and feed-forward dims by count, by layer; null where the sublayer is absent."""
    return {
        "attention": {str(i): list(units["head"]) if "head" in units else None for i, units in enumerate(kept)},
        "feed_forward": {str(i): len(units["dim_ff"]) if "dim_ff" in units else None for i, units in enumerate(kept)},
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("sprunec", "torch", "safetensors", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
