"""Train all weights of a model: dense, or fine-tuning what a rewrite has left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sprunec.engines.training import Distillation, Training
from sprunec.errors import PassError
from sprunec.families.base_config import FORWARD, TRAINING
from sprunec.graph.arithmetic import trained
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Node
from sprunec.graph.needs import Needs
from sprunec.graph.options import BatchOptions
from sprunec.passes import load
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass, PassSpec
from sprunec.plan.scale import training_setting

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sprunec.engines.distillation import Distiller
    from sprunec.engines.torch_engine import TorchEngine
    from sprunec.rewrite.trace import TracedBlock


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Training, BatchOptions):
    """What every pass that trains is told."""

    precision: str
    first_step: int
    distillation: Distillation | None = None


def lower(build: Builder, spec: PassSpec) -> None:
    build.model = add(build, spec, build.options(TrainOptions, spec), about=f"{spec.options['steps']} steps")


def add(build: Builder, spec: PassSpec, options: TrainOptions, about: str, suffix: str = "") -> str:
    """Append a node that trains the newest model, and count its steps."""
    inputs, steps, every = {"model": build.model, "data": build.data}, options.steps, spec.options["checkpoint_every"]
    if options.distillation is not None:
        inputs["teacher"] = load.add_teacher(build, spec.options["distillation"]["teacher"])
    about += f", learning rate {options.learning_rate:g}"
    build.tokens += _tokens(build, options)
    build.flops += _operations(build, options)
    build.model_steps += steps
    return build.add(spec.name, options, inputs, suffix, steps=steps, checkpoint_every=every, about=about)


def _tokens(build: Builder, options: TrainOptions) -> int:
    return options.steps * options.batch_size * (options.max_length - build.config.overhead)


def _operations(build: Builder, options: TrainOptions) -> float:
    taught = FORWARD * float(build.config.parameters()) if options.distillation is not None else 0.0
    return (TRAINING * float(build.left.parameters) + taught) * _tokens(build, options)


def needs(build: Builder, node: Node) -> Needs:
    """Count for one device; what each of several takes is told besides."""
    setting = training_setting(build.plan, vars(node.options))
    return trained(build.sizes[node.inputs["model"]], setting, _operations(build, node.options))


def run(job: Job[TrainOptions]) -> dict[str, Any]:
    from sprunec.families.model_directory import open_model_tensors
    from sprunec.masks.two_four import density, leaks, load_pattern, save_pattern

    engine, pattern = engine_of(job), load_pattern(job.inputs["model"])
    last, notes, state = fit_model(job, engine, engine.load(job.empty(), job.weights()), kept=pattern)
    job.save(state)
    if engine.world.rank != 0:
        return {}
    metrics = {"loss": last["loss"], "steps": last["steps"], "parameters": job.config().parameters()}
    metrics |= {"distillation": last["distillation"]} if "distillation" in last else {}
    metrics |= {"notes": notes} if notes else {}
    if pattern:  # handed on, once it is sure that it has held
        state = open_model_tensors(job.out)
        if moved := leaks(state, pattern):
            raise PassError(f"{moved[0]} is not zero where its 2:4 pattern says so")
        save_pattern(job.out, pattern)
        metrics["density"] = density(state, pattern)
    return metrics


def engine_of(job: Job[TrainOptions]) -> TorchEngine:
    """Make what trains; all ranks do."""
    from sprunec.engines.choose import choose_engine

    return choose_engine(job.engine, job.place, job.world, job.options.seed, job.config().parameters())


def fit_model(
    job: Job[TrainOptions], engine: TorchEngine, model: nn.Module, blocks: Sequence[TracedBlock] = (), **more: Any
) -> tuple[dict[str, Any], list[str], Mapping[str, Tensor]]:
    """Train a model as the options say; give the last step's event, what the user should know, and the weights.

    Args:
        blocks: what was traced of the model before it got gates.
        more: see `engines.loop.fit`.
    """
    from sprunec.engines.loop import fit

    distiller, notes = _distiller(job, engine, model, blocks)
    more |= {"first_step": job.options.first_step, "report": job.report, "saves": job.saves}
    last = fit(model, job.data(job.config()).batch, job.options, engine, auxiliary_loss=distiller, **more)
    return last, notes, engine.weights(model)


def _distiller(
    job: Job[TrainOptions], engine: TorchEngine, student: nn.Module, blocks: Sequence[TracedBlock]
) -> tuple[Distiller | None, list[str]]:
    """Set up the distillation that the options ask for, and a note on each pair whose student state was cut away.

    Raises:
        InputError: two states are of different widths, and nothing projects.
    """
    from sprunec.engines.distillation import Distiller, make_projections
    from sprunec.families.states import Pair, state_widths
    from sprunec.rewrite.taps import observable

    options = job.options.distillation
    if options is None:
        return None, []
    here, there = job.config(), job.config("teacher")
    written = [Pair.read(pair) for pair in options.pairs] if options.hidden else []
    pairs = [pair for pair in written if pair.student.module in state_widths(here)]
    widths = [(pair.student.width(here), pair.teacher.width(there)) for pair in pairs]
    seed, device = job.options.seed, job.place.device
    projections = make_projections(pairs, widths, project=options.project, seed=seed, device=device)
    teacher = engine.load(job.empty("teacher"), job.weights("teacher"))
    seen = observable(student, [pair.student for pair in pairs], blocks)
    taught = observable(teacher, [pair.teacher for pair in pairs])
    notes = [f"{pair} is not distilled: {pair.student.module} has been cut" for pair in written if pair not in pairs]
    return Distiller(teacher, options, pairs, seen, taught, projections), notes


INPUTS, TEACHER = ("model", "data"), ("teacher",)
TRAIN = Pass("train", 4, TrainOptions, INPUTS, "model", TEACHER, lower, needs=needs, trains=True)
FINETUNE = Pass(
    "finetune", 4, TrainOptions, INPUTS, "model", TEACHER, lower, needs=needs, trains=True, needs_trained=True
)
