"""Lower a plan to an execution graph: intent in, every step spelled out.

    user writes      lowering makes of it
    (model, data) -> load, data, and a trace and evaluation of the dense model
    train         -> train
    train-mask    -> train-mask, binarize, rewrite, compare
    score-mask    -> score-mask, binarize, rewrite, compare
    load-mask     -> load-mask, rewrite, compare
    sparsify      -> sparsify, and the passes that train from there on hold its zeros
    finetune      -> train, on the model as it is by then: rewritten, small
    emit          -> expand, emit, compare with what was emitted, evaluations of masked and small

Lowering is pure: it reads the plan and hashes the user's files, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from sprunec.data.sets import set_files
from sprunec.graph.graph import MISSING, Graph, Node, digest_of, file_digest, file_stamp
from sprunec.graph.sizes import planned
from sprunec.masks.provenance import weights_warning
from sprunec.model.config import ModelConfig
from sprunec.passes.table import PASSES
from sprunec.plan.distillation import WHOLE
from sprunec.plan.plan import DataSource, PassSpec, Plan
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
ROWS_FIT = ("cpm-live", "pairs")  # how long a row may be decides what is read
FLOPS_PER_PARAMETER, FLOPS_TO_TEACH = 6, 2


def lower(plan: Plan) -> Graph:
    """The graph of a plan."""
    builder = _Builder(plan)
    builder.load()
    for spec in plan.passes:
        builder.keep_dense(spec)
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
    data_files: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)

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

    def __post_init__(self) -> None:
        self.left = Left.of(self.config)
        self.model_steps = self.plan.model.start_step

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
        data, config = self.plan.data, self.config
        assert data is not None
        files = _data_files(data)
        options: dict[str, Any] = {
            "source": data.source,
            "tokenizer": file_digest(data.tokenizer) if isinstance(data.tokenizer, Path) else data.tokenizer,
            "held_out": data.held_out,
            "vocab_size": config.vocab_size,
            "content": _content(data.source, files.get("paths", ())),
        }
        if "held_out" in files:
            options["held_out"] = _content(data.source, files["held_out"])
        if data.source in ROWS_FIT:
            options |= {"max_length": data.max_length, "prompt_length": config.prompt_length}
        if data.source == "cpm-live":
            self.data_files = files
            options |= {"prompt_types": config.prompt_types, "segment_types": config.segment_types}
            options |= {key: getattr(data, key) for key in ("block_size", "order", "packed_prompts")}
            options["vocab"] = None if data.vocab is None else file_digest(data.vocab)
        return self.add("data", options, {}, files=files, about=data.source)

    def keep_dense(self, spec: PassSpec) -> None:
        """The model that the first pass that cuts is given is the teacher of the passes from there on."""
        if spec.name not in WHOLE:
            self.latest.setdefault("teacher", self.latest["model"])

    def finish(self) -> None:
        self._evaluate_dense()
        final = self.latest["model"]
        self.roles["final"] = final
        masked = final
        if "origin" in self.latest:
            self.roles["origin"] = self.latest["origin"]
            inputs = {"model": final, "source": self.roles["source"], "origin": self.latest["origin"]}
            masked = self.add("expand", {}, inputs, about="back in the input's shape")
        self.roles["full"] = masked
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
        if self._evaluates() and {"origin", "sparse"} & self.latest.keys():
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
        inputs = {"model": self.latest["model"], "data": self.latest["data"]} | self._teacher(spec)
        about = f"{spec.options['steps']} steps"
        self.latest["model"] = self.add(
            spec.name, options, inputs, **_steps(spec), about=about, parameters=self.left.parameters
        )
        self._count(spec)

    def train_mask(self, spec: PassSpec) -> None:
        self._evaluate_dense()
        options = self._training_options(spec) | _mask_options(spec)
        options |= {key: spec.options[key] for key in ("mask_learning_rate", "ramp")}
        inputs = {"model": self.latest["model"], "data": self.latest["data"]} | self._teacher(spec)
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
        self._count(spec)
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
        entered = self._source_options().get("checkpoint")
        warnings = tuple(filter(None, (weights_warning(path, entered) for path in paths)))
        self._cut(self.add("load-mask", options, inputs, files={"paths": paths}, about=names, notes=warnings), None)

    def sparsify(self, spec: PassSpec) -> None:
        self._evaluate_dense()
        options: dict[str, Any] = {key: spec.options[key] for key in ("pattern", "tensors")}
        files = {"path": spec.options["path"]} if "path" in spec.options else {}
        for path in files.get("path", ()):
            options["content"] = file_digest(path)
        writes = {"mask": spec.options["save_mask"]} if "save_mask" in spec.options else {}
        about = ", ".join((spec.options["pattern"], *(path.name for path in files.get("path", ()))))
        inputs, parameters = {"model": self.latest["model"]}, self.left.parameters
        self.latest["model"] = self.latest["sparse"] = self.add(
            "sparsify", options, inputs, files=files, about=about, parameters=parameters, writes=writes
        )

    def emit(self, spec: PassSpec) -> None:
        self.formats = tuple(spec.options["formats"])

    def _training_options(self, spec: PassSpec) -> dict[str, Any]:
        options = {key: spec.options[key] for key in TRAINING}
        distillation = spec.options["distillation"]
        if distillation is not None:
            options["distillation"] = {key: value for key, value in distillation.items() if key != "teacher"}
        return options | self._look() | {"precision": self.plan.engine.precision, "first_step": self.model_steps}

    def _teacher(self, spec: PassSpec) -> dict[str, str]:
        """The node of a training pass's teacher, by its role; a checkpoint is loaded once for all passes."""
        distillation = spec.options["distillation"]
        if distillation is None:
            return {}
        path = distillation["teacher"]
        if path is None:
            return {"teacher": self.latest["teacher"]}
        known = f"teacher {path}"
        if known not in self.latest:
            options = {"config": self.config.to_dict(), "checkpoint": file_digest(path)}
            files, parameters = {"checkpoint": (path,)}, self.config.parameters()
            self.latest[known] = self.add(
                "load", options, {}, suffix="teacher", files=files, about=path.name, parameters=parameters
            )
        return {"teacher": self.latest[known]}

    def _binarize(self, spec: PassSpec, scores: str) -> str:
        inputs = {"model": self.latest["model"], "scores": scores}
        options, writes = _mask_options(spec), {}
        if "save_mask" in spec.options:
            writes[spec.options["mask_form"]] = spec.options["save_mask"]
        about = _target_words(spec)
        return self.add("binarize", options, inputs, about=about, writes=writes, provenance=self._provenance(options))

    def _provenance(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What is noted beside a mask that has been chosen here."""
        about = {key: options[key] for key in ("unit", "target")}
        about |= {"checkpoint": self._source_options().get("checkpoint")}
        return about | {"start_step": self.plan.model.start_step, "steps": self.model_steps}

    def _source_options(self) -> Mapping[str, Any]:
        return next(node.options for node in self.nodes if node.name == self.roles["source"])

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

    def _count(self, spec: PassSpec) -> None:
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
        return Graph(self.plan.name, nodes, self.roles, device, sizes, self.tokens, self.flops, name)


LOWERINGS = {
    "train": _Builder.train,
    "finetune": _Builder.train,
    "train-mask": _Builder.train_mask,
    "score-mask": _Builder.score_mask,
    "load-mask": _Builder.load_mask,
    "sparsify": _Builder.sparsify,
    "emit": _Builder.emit,
}


def _steps(spec: PassSpec) -> dict[str, Any]:
    return {"steps": spec.options["steps"], "checkpoint_every": spec.options["checkpoint_every"]}


def _mask_options(spec: PassSpec) -> dict[str, Any]:
    return {key: spec.options[key] for key in ("unit", "target", "budget")}


def _target_words(spec: PassSpec) -> str:
    words = ", ".join(f"{name} -> {value}" for name, value in spec.options["target"].items())
    return f"{words} ({spec.options['budget']})"


def _data_files(data: DataSource) -> dict[str, tuple[Path, ...]]:
    """The user's files by role; a set's are its meta.bin and what that names."""
    named = {"paths": data.paths, "held_out": (data.held_out,) if isinstance(data.held_out, Path) else ()}
    if data.source == "cpm-live":
        sets = ((role, [set_files(path, data.block_size) for path in paths]) for role, paths in named.items())
        named = {role: tuple(chain.from_iterable(files)) for role, files in sets}
    named["tokenizer"] = (data.tokenizer,) if isinstance(data.tokenizer, Path) else ()
    named["vocab"] = () if data.vocab is None else (data.vocab,)
    return {role: paths for role, paths in named.items() if paths}


def _content(source: str, paths: tuple[Path, ...]) -> Any:
    """What identifies a text: its files' digests, or the interpreter's own documentation's."""
    if source != "python-docs":
        digests = tuple(file_digest(path) for path in paths)
        return MISSING if MISSING in digests else digests
    from pydoc_data import topics

    return file_digest(Path(topics.__file__))
