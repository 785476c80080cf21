"""Train all weights of a model: dense, or fine-tuning what a rewrite has left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sprunec.engines.training import Adapter, Distillation, Training
from sprunec.errors import InputError, PassError
from sprunec.families.base_config import FORWARD, TRAINING
from sprunec.families.tensor_names import projections, selected
from sprunec.graph.alternatives import alternatives
from sprunec.graph.arithmetic import Text, forward, trained
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Node
from sprunec.graph.model_size import ModelSize
from sprunec.graph.needs import Needs
from sprunec.graph.options import BatchOptions
from sprunec.machine import physical_memory
from sprunec.passes import load, teacher_cache
from sprunec.passes.job import Job
from sprunec.plan.declared import Pass, PassSpec
from sprunec.plan.scale import FLOAT, Setting, cost, teacher_stays, training_setting

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sprunec.data.batches import Batch, Data
    from sprunec.engines.adapters import Adapters
    from sprunec.engines.distilling.distillation import Distiller
    from sprunec.engines.torch_engine import TorchEngine
    from sprunec.models.teacher import Teacher
    from sprunec.rewrite.trace import TracedBlock


BESIDE = ("distillation", "adapter")  # what the last step's event may have, and is reported


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Training, BatchOptions):
    """What every pass that trains is told."""

    precision: str
    first_step: int
    distillation: Distillation | None = None
    freeze: tuple[str, ...] = ()
    adapter: Adapter | None = None


def lower(build: Builder, spec: PassSpec) -> None:
    build.model = add(build, spec, build.options(TrainOptions, spec), about=f"{spec.options['steps']} steps")


def add(build: Builder, spec: PassSpec, options: TrainOptions, about: str, suffix: str = "") -> str:
    """Append a node that trains the newest model, and count its steps."""
    inputs, steps, every = {"model": build.model, "data": build.data}, options.steps, spec.options["checkpoint_every"]
    if options.distillation is not None:
        inputs |= _teacher(build, spec, options)
    about += f", learning rate {options.learning_rate:g}"
    build.tokens += _tokens(build, options)
    build.flops += _operations(build, options, inputs)
    build.model_steps += steps
    return build.add(spec.name, options, inputs, suffix, steps=steps, checkpoint_every=every, about=about)


def _teacher(build: Builder, spec: PassSpec, options: TrainOptions) -> dict[str, str]:
    """Name what gives a student its teacher, or what this has said."""
    written = spec.options["distillation"]
    teacher = load.add_teacher(build, written["teacher"])
    if written["teacher_cache"] is None:
        return {"teacher": teacher}
    return {"teacher_cache": teacher_cache.add(build, teacher, options, written["teacher_cache"]["top_k"])}


def _tokens(build: Builder, options: TrainOptions) -> int:
    return options.steps * options.batch_size * (options.max_length - build.config.overhead)


def _operations(build: Builder, options: TrainOptions, inputs: Mapping[str, str]) -> float:
    """Count them; beside adapters, matrices that stay have no gradients of their own."""
    text = Text(options.steps * options.batch_size, options.max_length)
    taught = forward(build.sizes[inputs["teacher"]], text, head=True) if "teacher" in inputs else 0.0
    ways = TRAINING / FORWARD - (options.adapter is not None)
    return ways * forward(build.sizes[inputs["model"]], text, head=True) + taught


def needs(build: Builder, node: Node) -> Needs:
    """Count for one device; what each of several takes is told besides."""
    model, options = build.sizes[node.inputs["model"]], node.options
    setting = replace(training_setting(build.plan, vars(options)), item=model.item)
    found = _needs(build, node, model, setting)
    return replace(found, instead=alternatives(model.config, setting, options.batch_size))


def _needs(build: Builder, node: Node, model: ModelSize, setting: Setting) -> Needs:
    """Count what training takes, with its teacher in memory or in its files."""
    options = node.options
    amounts = _operations(build, options, node.inputs), float(_tokens(build, options))
    if "teacher" not in node.inputs:
        return trained(model, setting, *amounts)
    teacher, training = build.sizes[node.inputs["teacher"]], cost(model.config, setting).memory
    blocks = (FLOAT + teacher.item) * teacher.largest_block  # in float32 the one at work; in files the next as stored
    if teacher_stays(build.plan.engine.teacher_weights, teacher.nbytes, training, physical_memory()):
        return trained(model, replace(setting, teacher=teacher.nbytes + blocks), *amounts)
    read = options.steps * options.accumulate * teacher.nbytes
    found = trained(model, replace(setting, teacher=blocks), *amounts)
    return replace(found, reads=found.reads + read)


def run(job: Job[TrainOptions]) -> dict[str, Any]:
    from sprunec.families.model_directory import open_model_tensors
    from sprunec.masks.two_four import density, leaks, load_pattern, save_pattern

    engine, pattern = engine_of(job), load_pattern(job.inputs["model"])
    how: dict[str, Any] = {} if job.options.adapter is None else {"dtype": None}  # stored as it is
    model = loading(job.options, engine).load(job.empty(), job.weights(), **how)
    last, notes, state = fit_model(job, engine, model, kept=pattern)
    job.save(state)
    if engine.world.rank != 0:
        return {}
    metrics = {"loss": last["loss"], "steps": last["steps"], "parameters": job.config().parameters()}
    metrics |= {key: last[key] for key in BESIDE if key in last}
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


def loading(options: TrainOptions, engine: TorchEngine) -> TorchEngine:
    """Choose what loads a model: adapters are put on whole weights, which become shards afterwards."""
    return engine if options.adapter is None else replace(engine, full=False)


def fit_model(
    job: Job[TrainOptions], engine: TorchEngine, model: nn.Module, blocks: Sequence[TracedBlock] = (), **more: Any
) -> tuple[dict[str, Any], list[str], Mapping[str, Tensor]]:
    """Train a model as the options say; give the last step's event, what the user should know, and the weights.

    Args:
        blocks: what was traced of the model before it got gates.
        more: see `engines.loop.fit`.
    """
    from sprunec.engines.adapters import some_logits
    from sprunec.engines.loop import fit

    adapters, data = _freeze(job, model, gated="learner" in more), job.data(job.config())
    batches = data.batch
    distiller, notes = _distiller(job, engine, model, blocks)
    more |= {"first_step": job.options.first_step, "report": job.report, "saves": job.saves}
    more |= {"held_out": _held_out(job, data)}
    last = fit(model, batches, job.options, engine, auxiliary_loss=distiller, **more)
    if adapters is None:
        return last, notes, engine.weights(model)
    batch = batches(job.options.first_step).part(slice(1), job.options.max_length).to(job.place.device)
    found = {"parameters": adapters.parameters, **adapters.check(lambda: some_logits(model.eval(), batch))}
    return {**last, "adapter": found}, notes, adapters.merged(engine.weights(model))


def _held_out(job: Job[TrainOptions], data: Data) -> Batch | None:
    """Take a batch of held-out rows, as many for each process; bmtrain runs forward alone in no way that we know."""
    batch = None if job.engine.get("name") == "bmtrain" else next(iter(data.held_out_batches()), None)
    if batch is None or len(batch.targets) < job.world.size:
        return None
    rows = len(batch.targets) // job.world.size * job.world.size
    return batch.part(slice(rows), batch.targets.size(1))


def _freeze(job: Job[TrainOptions], model: nn.Module, *, gated: bool) -> Adapters | None:
    """Leave to train what the options say: the weights or some of them, or adapters in their place.

    Raises:
        InputError: nothing is left that trains, and no gates do.
    """
    from sprunec.engines.adapters import adapt

    options, config = job.options, job.config()
    if options.adapter is not None:
        targets = projections(config, options.adapter.targets)
        return adapt(model, options.adapter, targets, job.weights().dtype, options.seed)
    frozen = selected(config, options.freeze)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    if not gated and not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError.in_option("freeze", "nothing of what is left of the model trains", "freeze less")
    return None


def _distiller(
    job: Job[TrainOptions], engine: TorchEngine, student: nn.Module, blocks: Sequence[TracedBlock]
) -> tuple[Distiller | None, list[str]]:
    """Set up the distillation that the options ask for, and a note on each pair whose student state was cut away.

    Raises:
        InputError: two states are of different widths, and nothing projects.
    """
    from sprunec.engines.distilling.cached_teacher import CachedTeacher
    from sprunec.engines.distilling.distillation import Distiller, make_projections
    from sprunec.families.states import Pair, state_widths
    from sprunec.rewrite.taps import observable

    options = job.options.distillation
    if options is None:
        return None, []
    if "teacher_cache" in job.inputs:
        return Distiller(CachedTeacher(job.inputs["teacher_cache"]), options, [], {}, {}, []), []
    here, there = job.config(), job.config("teacher")
    written = [Pair.read(pair) for pair in options.pairs] if options.hidden else []
    pairs = [pair for pair in written if pair.student.module in state_widths(here)]
    widths = [(pair.student.width(here), pair.teacher.width(there)) for pair in pairs]
    seed, device = job.options.seed, job.place.device
    projections = make_projections(pairs, widths, project=options.project, seed=seed, device=device)
    (teacher, model), seen = _open_teacher(job, engine), observable(student, [pair.student for pair in pairs], blocks)
    taught = observable(model, [pair.teacher for pair in pairs])
    notes = [f"{pair} is not distilled: {pair.student.module} has been cut" for pair in written if pair not in pairs]
    return Distiller(teacher, options, pairs, seen, taught, projections), notes


def _open_teacher(job: Job[TrainOptions], engine: TorchEngine) -> tuple[Teacher | nn.Module, nn.Module]:
    """Read the teacher's weights, or leave them in their files where they do not fit beside the training.

    Gives it, and the model whose modules see its states. Where the student is in shards it is, too.
    """
    from sprunec.models.teacher import Teacher

    options, weights, devices = job.options, job.weights("teacher"), job.world.size
    keep = job.engine.get("teacher_weights", "auto")
    if engine.full and keep != "disk" and job.engine.get("name", "torch") == "torch":
        sharded = engine.load(job.empty("teacher"), weights)
        return sharded, sharded
    setting = Setting(
        devices=devices,
        recompute=engine.recompute,
        precision=options.precision,
        optimizer=options.optimizer,
        sequences=max(1, options.batch_size // devices // options.accumulate),
        positions=options.max_length,
    )
    training, size = cost(job.config(), setting).memory, sum(place.nbytes for place in weights.places.values())
    in_memory = teacher_stays(keep, size, training, job.place.memory(devices))
    teacher = Teacher(job.config("teacher"), weights, job.place.device, in_memory=in_memory)
    return teacher, teacher.model


INPUTS, TEACHER = ("model", "data"), ("teacher", "teacher_cache")
TRAIN = Pass("train", 5, TrainOptions, INPUTS, "model", TEACHER, lower, needs=needs, trains=True)
FINETUNE = Pass(
    "finetune", 5, TrainOptions, INPUTS, "model", TEACHER, lower, needs=needs, trains=True, needs_trained=True
)
