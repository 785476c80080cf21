"""The graph while it is made: the nodes so far, and which of them gives what the next one needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.graph.graph import Graph, Node, digest_of, file_stamp
from sprunec.graph.notes import resolved
from sprunec.passes.table import PASSES
from sprunec.plan.plan import PassSpec, Plan
from sprunec.plan.targets import Left

MODELS = ("dense", "masked", "small")
FLOPS_PER_PARAMETER, FLOPS_TO_TEACH = 6, 2


@dataclass
class Builder:
    """Nodes so far.

    Attributes:
        latest: which node gives the newest model, data, origin, ...
        roles: see `Graph`.
        left: what the model has by now.
        model_steps: training steps that it has had.
        data_files: the user's files that every node that uses data reads.
        formats, dtype: what to emit, and what folded weights are stored in.
    """

    plan: Plan
    nodes: list[Node] = field(default_factory=list)
    latest: dict[str, str] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    left: Left = field(init=False)
    model_steps: int = 0
    tokens: int = 0
    flops: float = 0.0
    formats: tuple[str, ...] = ()
    dtype: str = "keep"
    data_files: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.left = Left.of(self.config)
        self.model_steps = self.plan.model.start_step

    def add(self, pass_: str, options: Mapping[str, Any], inputs: Mapping[str, str], **extra: Any) -> str:
        """Append a node; `suffix` and the rest of `extra` go to the node."""
        info, suffix = PASSES[pass_], extra.pop("suffix", "")
        missing = set(info.needs) - set(inputs)
        assert not missing, f"{pass_} lacks {missing}"
        name = "-".join(part for part in (str(len(self.nodes) + 1), pass_, suffix) if part)
        digests = {role: self._digest(node) for role, node in inputs.items()}
        digest = digest_of(pass_, info.version, options, digests)
        if "data" in inputs:
            extra["files"] = {**self.data_files, **extra.get("files", {})}
        paths = [path for paths in extra.get("files", {}).values() for path in paths]
        stamps = {path: file_stamp(path) for path in paths}
        self.nodes.append(Node(name, pass_, options, inputs, digest, info.gives, stamps=stamps, **extra))
        return name

    def _digest(self, name: str) -> str | None:
        return next(node.digest for node in self.nodes if node.name == name)

    @property
    def config(self) -> ModelConfig:
        """Of the plan's input model."""
        return self.plan.model.config

    def evaluate_dense(self) -> None:
        if "dense" not in self.roles and self.evaluates():
            self.roles["dense"] = self.evaluate("dense", {"model": self.latest["model"]})

    def evaluate_pruned(self, masked: str, masks: str, small: str) -> None:
        if self.evaluates() and "origin" in self.latest:
            self.roles["masked"] = self.evaluate("masked", {"model": masked, "masks": masks})
        if self.evaluates() and {"origin", "sparse"} & self.latest.keys():
            self.roles["small"] = self.evaluate("small", {"model": small})

    def measure_speed(self, masks: str) -> None:
        """Last, of all the models that were evaluated, in one node: speeds are compared only if measured together."""
        if not self.evaluates():
            return
        found = {
            role: next(n for n in self.nodes if n.name == self.roles[role]) for role in MODELS if role in self.roles
        }
        inputs = {role: node.inputs["model"] for role, node in found.items()}
        inputs |= {"masks": masks} if "masked" in inputs else {}
        options = self.look() | {"precision": self.plan.engine.precision}
        about = f"{', '.join(found)} interleaved" if len(found) > 1 else "tokens per second"
        self.add("measure-speed", options, inputs | self.data_inputs(), about=about)

    def evaluates(self) -> bool:
        return self.plan.evaluate and self.plan.data is not None

    def evaluate(self, suffix: str, inputs: Mapping[str, str]) -> str:
        options = self.look() | {"tokens": self.plan.evaluate_tokens, "precision": self.plan.engine.precision}
        return self.add("evaluate", options, {**inputs, **self.data_inputs()}, suffix=suffix, about="held-out loss")

    def data_inputs(self) -> dict[str, str]:
        return {"data": self.latest["data"]} if "data" in self.latest else {}

    def look(self) -> dict[str, Any]:
        """What decides a batch."""
        data = self.plan.data
        shape = {} if data is None else {"max_length": data.max_length, "batch_size": data.batch_size}
        return {"seed": self.plan.seed} | shape

    def compared(self) -> dict[str, Any]:
        """What decides what models are compared on."""
        return self.look() | {"tokens": self.plan.compare_tokens}

    def source_options(self) -> Mapping[str, Any]:
        return next(node.options for node in self.nodes if node.name == self.roles["source"])

    def count(self, spec: PassSpec) -> None:
        data, steps = self.plan.data, spec.options["steps"]
        assert data is not None
        self.model_steps += steps
        tokens = steps * data.batch_size * (data.max_length - self.config.prompt_length)
        self.tokens += tokens
        self.flops += FLOPS_PER_PARAMETER * float(self.left.parameters) * tokens
        if spec.options["distillation"] is not None:
            self.flops += FLOPS_TO_TEACH * float(self.config.parameters()) * tokens

    def graph(self) -> Graph:
        sizes = (self.plan.model.config.parameters(), self.left.parameters)
        nodes = tuple(self.nodes)
        name, device = self.plan.checkpoint_name, self.plan.engine.device
        return Graph(
            self.plan.name, nodes, self.roles, device, sizes, self.tokens, self.flops, name, resolved(self.plan)
        )
