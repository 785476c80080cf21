"""The graph while it is made: the nodes so far, and which of them gives what the next one needs.

Passes lower themselves: each adds its nodes here, with what only the graph's room can tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from sprunec.engines.training import Adapter, Distillation
from sprunec.families.base_config import ModelConfig
from sprunec.families.cards import card_of
from sprunec.file_digests import file_digest, file_stamp
from sprunec.graph.graph import Graph, Node, Roles, digest_of, plain
from sprunec.graph.model_size import ModelSize
from sprunec.graph.options import LOOKED, Options
from sprunec.graph.weights import NO_MASK, weights_digest
from sprunec.plan.declared import PASSES, PassSpec
from sprunec.plan.plan import Plan
from sprunec.plan.scale import FLOAT
from sprunec.plan.targets import Left

Kind = TypeVar("Kind", bound=Options)


@dataclass
class Builder:
    """Nodes so far.

    Attributes:
        most_read: a checkpoint of more bytes is not read, and what depends on it has no digest.
        model, data: which node gives the newest model, and the data; none yet.
        teachers: by checkpoint, which node gives a teacher; by None, the model before anything is taken away.
        left: what the model has by now.
        sizes: of the models that nodes give.
        widest: parameters of the largest block, where a cut has left it to the layers how much each keeps.
        sure: whether every cut so far says how much it leaves.
        model_steps: training steps that it has had.
        held_out: about how many tokens are held out.
        step: the plan's pass that is lowered, by JSON pointer; empty for what the whole plan asks for.
        data_files: the user's files that every node that uses data reads.
        emitting: what to emit, last.
        evaluating: which tasks to run, after that.
    """

    plan: Plan
    most_read: float = math.inf
    nodes: dict[str, Node] = field(default_factory=dict)
    roles: Roles = field(default_factory=Roles)
    model: str = ""
    data: str = ""
    teachers: dict[Path | None, str] = field(default_factory=dict)
    left: Left = field(init=False)
    sizes: dict[str, ModelSize] = field(default_factory=dict)
    widest: int = 0
    sure: bool = True
    model_steps: int = 0
    tokens: int = 0
    flops: float = 0.0
    held_out: int = 0
    step: str = ""
    emitting: PassSpec | None = None
    evaluating: list[PassSpec] = field(default_factory=list)
    data_files: dict[str, tuple[Path, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.left = Left.of(self.config)
        self.model_steps = self.plan.model.start_step

    @property
    def config(self) -> ModelConfig:
        return self.plan.model.config

    @property
    def keep(self) -> str:
        """Say where hidden states are kept between two blocks."""
        return self.plan.engine.hidden_states

    @property
    def checkpoint(self) -> str | None:
        """Name the plan's checkpoint by its content."""
        found: str = self.nodes[self.roles.source].options.checkpoint
        return found or None

    def options(self, kind: type[Kind], spec: PassSpec | None = None, **given: Any) -> Kind:
        """Fill in a node's options: from `given`, else as the user wrote them, else as the whole plan decides."""
        data, plan = self.plan.data, self.plan
        known: dict[str, Any] = {"seed": plan.seed, "precision": plan.engine.precision, "first_step": self.model_steps}
        known |= {} if data is None else {"max_length": data.max_length, "batch_size": data.batch_size}
        known |= {} if spec is None else spec.options
        known |= {"batches": LOOKED} if known.get("batches", 0) is None else {}
        if (distillation := known.get("distillation")) is not None:
            own = {each.name for each in fields(Distillation)}  # who teaches is an input
            known["distillation"] = Distillation(**{k: v for k, v in distillation.items() if k in own})
        if (adapter := known.get("adapter")) is not None:
            known["adapter"] = Adapter(**adapter)
        known |= given
        return kind(**{each.name: known[each.name] for each in fields(kind) if each.name in known})

    def add(
        self,
        pass_: str,
        options: Options,
        inputs: Mapping[str, str],
        suffix: str = "",
        size: ModelSize | None = None,
        **extra: Any,
    ) -> str:
        """Append a node.

        Args:
            inputs: those without a giver are left out.
            size: of the model that it gives, where that is not what is left, stored as the input's or as what trains.
            extra: fields of `Node`.
        """
        info, inputs = PASSES[pass_], {role: node for role, node in inputs.items() if node}
        missing = set(info.inputs) - set(inputs)
        assert not missing, f"{pass_} lacks {missing}"
        name = "-".join(part for part in (str(len(self.nodes) + 1), pass_, suffix) if part)
        digests = {role: self.nodes[node].digest for role, node in inputs.items()}
        digest = digest_of(pass_, info.version, options.document(), digests)
        files = (self.data_files if "data" in inputs else {}) | extra.pop("files", {})
        stamps = {path: file_stamp(path) for paths in files.values() for path in paths}
        more = {
            "parameters": self.left.parameters if info.makes_model else None,
            "files": files,
            "stamps": stamps,
            "step": self.step,
        } | extra
        node = Node(name, pass_, options, inputs, digest, info.output, **more)
        if size is None and info.makes_model:
            item = FLOAT if info.trains else self.sizes[inputs["model"]].item
            size = ModelSize(self.left, item, self.widest, self.sure)
        if size is not None:
            self.sizes[name] = size
        self.nodes[name] = node if info.needs is None else replace(node, needs=info.needs(self, node))
        return name

    def masks_digest(self, path: Path) -> str:
        """Hash a mask file; of a folder the names, too, which tell the layers."""
        return file_digest(path) if path.is_dir() else weights_digest(path, NO_MASK)

    def provenance(self, unit: Any, target: Any) -> dict[str, Any]:
        """Say what is noted beside a mask that is chosen here: what of, how much, and on which model."""
        model = {"start_step": self.plan.model.start_step, "steps": self.model_steps}
        return {"unit": unit, "target": target, "checkpoint": self.checkpoint} | model

    def changes_weights(self) -> bool:
        """Tell whether the plan does more to the input's weights than to cut some away."""
        specs = self.plan.passes
        return any(PASSES[s.name].changes_weights or s.options.get("compensate") is not None for s in specs)

    def evaluates(self) -> bool:
        return self.plan.evaluate and self.plan.data is not None

    def graph(self) -> Graph:
        plan, sizes = self.plan, (self.config.parameters(), self.left.parameters)
        caches = [card_of(config).cache_bytes(config) for config in (self.config, self.left.config)]
        published = self.sizes[self.roles.full].nbytes if plan.checkpoint_name is not None else 0.0
        amounts = (sizes, (caches[0], caches[1]), self.tokens, self.flops, published, plan.checkpoint_name)
        return Graph(plan.name, tuple(self.nodes.values()), self.roles, plan.engine.device, *amounts, plain(plan))
