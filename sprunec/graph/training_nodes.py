"""Lower the passes that train, and what every pass that trains is told."""

from __future__ import annotations

from typing import Any

from sprunec.graph.builder import Builder
from sprunec.graph.sources import teacher
from sprunec.plan.plan import PassSpec

TRAINING = (
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
)


def train(build: Builder, spec: PassSpec) -> None:
    options = training_options(build, spec)
    inputs = {"model": build.latest["model"], "data": build.latest["data"]} | teacher(build, spec)
    about = f"{spec.options['steps']} steps"
    build.latest["model"] = build.add(
        spec.name, options, inputs, **steps_of(spec), about=about, parameters=build.left.parameters
    )
    build.count(spec)


def training_options(build: Builder, spec: PassSpec) -> dict[str, Any]:
    options = {key: spec.options[key] for key in TRAINING}
    distillation = spec.options["distillation"]
    if distillation is not None:
        options["distillation"] = {key: value for key, value in distillation.items() if key != "teacher"}
    return options | build.look() | {"precision": build.plan.engine.precision, "first_step": build.model_steps}


def steps_of(spec: PassSpec) -> dict[str, Any]:
    return {"steps": spec.options["steps"], "checkpoint_every": spec.options["checkpoint_every"]}
