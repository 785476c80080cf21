"""Lower a plan to an execution graph: intent in, every step spelled out.

    user writes      lowering makes of it
    (model, data) -> load, data, and a trace and evaluation of the dense model
    train         -> train
    train-mask    -> train-mask, binarize, rewrite, compare
    score-mask    -> score-mask, binarize, rewrite, compare
    load-mask     -> load-mask, rewrite, compare
    finetune      -> train, on the model as it is by then: rewritten, small
    emit          -> expand, emit, compare with what was emitted, evaluations of masked and small

Lowering is pure: it reads the plan and hashes the user's files, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sprunec.graph.graph import MISSING, Graph, Node, digest_of, file_digest, file_stamp
from sprunec.graph.sizes import planned
from sprunec.model.config import ModelConfig
from sprunec.passes.table import PASSES
from sprunec.plan.plan import PassSpec, Plan
from sprunec.plan.targets import Left

TRAINING = [
    "steps",
    "optimizer",
    "betas",
    "learning_rate",
    "schedule",
    "warmup_steps",
    "weight_decay",
    "clip_grad",
    "accumulate",
    "loss_scale",
]
FLOPS_PER_PARAMETER = 6


def lower(plan: Plan) -> Graph:
    """The graph of a plan."""
    builder = _Builder(plan)
    builder.load()
    for spec in plan.passes:
        LOWERINGS[spec.name](builder, spec)
    builder.finish()
    return builder.graph()


@dataclass
class _Builder:
    """The nodes so far, and which of them gives what the next one needs."""

    plan: Plan
    nodes: list[Node] = field(default_factory=list)
    latest: dict[str, str] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    left: Left = field(init=False)
    model_steps: int = 0
    tokens: int = 0
    flops: float = 0.0
    formats: tuple[str, ...] = ()

    def add(self, pass_: str, options: Mapping[str, Any], inputs: Mapping[str, str], **extra: Any) -> str:
        """Append a node; `suffix` and the rest of `extra` go to the node."""
        info, suffix = PASSES[pass_], extra.pop("suffix", "")
        missing = set(info.needs) - set(inputs)
        assert not missing, f"{pass_} lacks {missing}"
        name = "-".join(part for part in (str(len(self.nodes) + 1), pass_, suffix) if part)
        digests = {role: self._digest(node) for role, node in inputs.items()}
        digest = digest_of(pass_, info.version, options, digests)
        paths = [path for paths in extra.get("files", {}).values() for path in paths]
        stamps = {path: file_stamp(path) for path in paths}
        self.nodes.append(Node(name, pass_, options, inputs, digest, info.gives, stamps=stamps, **extra))
        return name

    def _digest(self, name: str) -> str | None:
        return next(node.digest for node in self.nodes if node.name == name)

    def __post_init__(self) -> None:
        self.left = Left.of(self.config)

    @property
    def config(self) -> ModelConfig:
        """Of the plan's input model."""
        return self.plan.model.config

    # --- what every plan has ---

    def load(self) -> None:
        plan, config = self.plan, self.config
        if plan.data is not None:
            self.latest["data"] = self._data_node()
        options: dict[str, Any] = {"config": config.to_dict()}
        files: dict[str, tuple[Path, ...]] = {}
        if plan.model.checkpoint is not None:
            options["checkpoint"] = file_digest(plan.model.checkpoint)
            files["checkpoint"] = (plan.model.checkpoint,)
        else:
            options["seed"] = plan.seed
        about = files["checkpoint"][0].name if files else "a new model"
        name = self.add("load", options, {}, files=files, about=about, parameters=config.parameters())
        self.latest["model"] = self.roles["source"] = name
        if any(PASSES[spec.name].gives in ("gated", "scores", "masks") for spec in plan.passes):
            self.add("trace", {}, {"model": name}, about="what can be cut")

    def _data_node(self) -> str:
        data = self.plan.data
        assert data is not None
        files: dict[str, tuple[Path, ...]] = {"paths": data.paths} if data.paths else {}
        options: dict[str, Any] = {
            "source": data.source,
            "tokenizer": data.tokenizer,
            "held_out": data.held_out,
            "vocab_size": self.config.vocab_size,
            "content": _content(data.source, data.paths),
        }
        if isinstance(data.held_out, Path):
            files["held_out"], options["held_out"] = (data.held_out,), file_digest(data.held_out)
        return self.add("data", options, {}, files=files, about=data.source)

    def finish(self) -> None:
        self._evaluate_dense()
        final = self.latest["model"]
        self.roles["final"] = final
        masked = final
        if "origin" in self.latest:
            self.roles["origin"] = self.latest["origin"]
            inputs = {"model": final, "source": self.roles["source"], "origin": self.latest["origin"]}
            masked = self.add("expand", {}, inputs, about="back in the input's shape")
        small = final
        if self.formats:
            inputs = {"model": final, "source": self.roles["source"]}
            small = self.add(
                "emit",
                {"formats": self.formats},
                inputs,
                about=", ".join(self.formats),
                parameters=self.left.parameters,
            )
            self.roles["emitted"] = small
        if masked != small:
            inputs = {"masked": masked, "masks": final, "small": small}
            self.add("compare", self._look(), inputs | self._data(), about="masked = small")
        self._evaluate_pruned(masked, final, small)

    def _evaluate_dense(self) -> None:
        if "dense" not in self.roles and self._evaluates():
            self.roles["dense"] = self._evaluate("dense", {"model": self.latest["model"]})

    def _evaluate_pruned(self, masked: str, masks: str, small: str) -> None:
        if self._evaluates() and "origin" in self.latest:
            self.roles["masked"] = self._evaluate("masked", {"model": masked, "masks": masks})
            self.roles["small"] = self._evaluate("small", {"model": small})

    def _evaluates(self) -> bool:
        return self.plan.evaluate and self.plan.data is not None

    def _evaluate(self, suffix: str, inputs: Mapping[str, str]) -> str:
        options = self._look() | {"tokens": self.plan.evaluate_tokens, "precision": self.plan.engine.precision}
        return self.add("evaluate", options, {**inputs, **self._data()}, suffix=suffix, about="held-out loss")

    def _data(self) -> dict[str, str]:
        return {"data": self.latest["data"]} if "data" in self.latest else {}

    def _look(self) -> dict[str, Any]:
        """What decides a batch."""
        data = self.plan.data
        shape = {} if data is None else {"max_length": data.max_length, "batch_size": data.batch_size}
        return {"seed": self.plan.seed} | shape

    # --- what users write ---

    def train(self, spec: PassSpec) -> None:
        options = self._training_options(spec)
        inputs = {"model": self.latest["model"], "data": self.latest["data"]}
        about = f"{spec.options['steps']} steps"
        self.latest["model"] = self.add(
            spec.name, options, inputs, **_steps(spec), about=about, parameters=self.left.parameters
        )
        self._count(spec.options["steps"])

    def train_mask(self, spec: PassSpec) -> None:
        self._evaluate_dense()
        options = self._training_options(spec) | _mask_options(spec)
        options |= {key: spec.options[key] for key in ("mask_learning_rate", "ramp")}
        inputs = {"model": self.latest["model"], "data": self.latest["data"]}
        suffix = "-".join(spec.options["unit"])
        name = self.add(
            "train-mask",
            options,
            inputs,
            suffix=suffix,
            **_steps(spec),
            about=_target_words(spec),
            parameters=self.left.parameters,
        )
        self._count(spec.options["steps"])
        self.latest["model"] = name
        self._cut(self._binarize(spec, name), spec)

    def score_mask(self, spec: PassSpec) -> None:
        self._evaluate_dense()
        options = _mask_options(spec) | {"criterion": spec.options["criterion"]} | self._look()
        inputs = {"model": self.latest["model"]}
        if spec.options["criterion"] == "taylor":
            options |= {"batches": spec.options["batches"], "first_step": self.model_steps}
            options |= {"precision": self.plan.engine.precision}
            inputs |= self._data()
        suffix = "-".join(spec.options["unit"])
        about = f"{spec.options['criterion']}: {_target_words(spec)}"
        name = self.add("score-mask", options, inputs, suffix=suffix, about=about)
        self._cut(self._binarize(spec, name), spec)

    def load_mask(self, spec: PassSpec) -> None:
        self._evaluate_dense()
        paths = tuple(spec.options["path"])
        inputs = {"model": self.latest["model"], "source": self.roles["source"]}
        options: dict[str, Any] = {"content": tuple(file_digest(path) for path in paths)}
        options |= {"missing": MISSING} if MISSING in options["content"] else {}
        names = ", ".join(path.name for path in paths)
        self._cut(self.add("load-mask", options, inputs, files={"paths": paths}, about=names), None)

    def emit(self, spec: PassSpec) -> None:
        self.formats = tuple(spec.options["formats"])

    def _training_options(self, spec: PassSpec) -> dict[str, Any]:
        options = {key: spec.options[key] for key in TRAINING}
        return options | self._look() | {"precision": self.plan.engine.precision, "first_step": self.model_steps}

    def _binarize(self, spec: PassSpec, scores: str) -> str:
        inputs = {"model": self.latest["model"], "scores": scores}
        return self.add("binarize", _mask_options(spec), inputs, about=_target_words(spec))

    def _cut(self, masks: str, spec: PassSpec | None) -> None:
        entering = self.latest["model"]
        if spec is not None:
            self.left = planned(self.left, spec.options["unit"], spec.options["target"])
        inputs = {"model": entering, "masks": masks}
        inputs |= {"origin": self.latest["origin"]} if "origin" in self.latest else {}
        small = self.add("rewrite", {}, inputs, about="slices only", parameters=self.left.parameters)
        inputs = {"masked": entering, "masks": masks, "small": small}
        self.add("compare", self._look(), inputs | self._data(), about="masked = small")
        self.latest |= {"model": small, "origin": small}

    def _count(self, steps: int) -> None:
        data = self.plan.data
        assert data is not None
        self.model_steps += steps
        tokens = steps * data.batch_size * (data.max_length - self.config.prompt_length)
        self.tokens += tokens
        self.flops += FLOPS_PER_PARAMETER * float(self.left.parameters) * tokens

    def graph(self) -> Graph:
        sizes = (self.plan.model.config.parameters(), self.left.parameters)
        nodes = tuple(self.nodes)
        return Graph(self.plan.name, nodes, self.roles, self.plan.engine.device, sizes, self.tokens, self.flops)


LOWERINGS = {
    "train": _Builder.train,
    "finetune": _Builder.train,
    "train-mask": _Builder.train_mask,
    "score-mask": _Builder.score_mask,
    "load-mask": _Builder.load_mask,
    "emit": _Builder.emit,
}


def _steps(spec: PassSpec) -> dict[str, Any]:
    return {"steps": spec.options["steps"], "checkpoint_every": spec.options["checkpoint_every"]}


def _mask_options(spec: PassSpec) -> dict[str, Any]:
    return {key: spec.options[key] for key in ("unit", "target", "budget")}


def _target_words(spec: PassSpec) -> str:
    words = ", ".join(f"{name} -> {value}" for name, value in spec.options["target"].items())
    return f"{words} ({spec.options['budget']})"


def _content(source: str, paths: tuple[Path, ...]) -> Any:
    """What identifies a text: its files' digests, or the interpreter's own documentation's."""
    if source != "python-docs":
        digests = tuple(file_digest(path) for path in paths)
        return MISSING if MISSING in digests else digests
    from pydoc_data import topics

    return file_digest(Path(topics.__file__))
