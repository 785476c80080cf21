"""What several passes do to get to work: open a model, its traced blocks, the data, the device, a teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sprunec.data import pairs
from sprunec.data.batches import Batch, Data, Packer, load_text_data
from sprunec.engines.device import Place
from sprunec.engines.distillation import Distiller, Weights, make_projections
from sprunec.engines.torch_engine import TorchEngine
from sprunec.families.cpm_ant.blocks import block_kinds, example_inputs
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.inputs import Prompted
from sprunec.families.cpm_ant.model import CPMAnt
from sprunec.families.cpm_ant.states import Pair, state_widths
from sprunec.families.model_directory import empty_model, load_model, read_config
from sprunec.passes.job import Job
from sprunec.plan.scale import shards_by_itself
from sprunec.rewrite.taps import observable
from sprunec.rewrite.trace import TracedBlock, trace_blocks

BMTRAIN = "bmtrain"
SET_ABOUT = "set.json"  # what the data pass has written about a CPM-Live set


def place_of(job: Job) -> Place:
    return Place.of(job.device, job.options.get("precision", "fp32"))


def check_engine(engine: Mapping[str, Any], place: Place) -> None:
    """Raises InputError if what a plan wants to train with cannot work here."""
    if engine.get("name") == BMTRAIN:
        from sprunec.engines.bmtrain_engine import check_here

        check_here(place)


def engine_of(job: Job) -> TorchEngine:
    """What trains; made by all ranks."""
    place, options = place_of(job), job.engine
    offload, recompute = bool(options.get("offload")), bool(options.get("activation_checkpointing"))
    if options.get("name") == BMTRAIN:
        from sprunec.engines.bmtrain_engine import BMTrainEngine

        full = options.get("sharding") != "none"
        return BMTrainEngine(
            place, job.world, seed=job.options["seed"], full=full, recompute=recompute, offload=offload
        )
    offload = offload and place.device.type != "cpu"
    full = offload or (job.world.size > 1 and _shards(job, place))
    return TorchEngine(place, job.world, full=full, recompute=recompute, offload=offload)


def _shards(job: Job, place: Place) -> bool:
    """Whether each rank keeps a part of the model: as the plan says, or as fits the lead's device."""
    chosen = job.engine.get("sharding", "auto")
    parameters, memory = config_of(job).parameters(), place.memory(job.world.size)
    return chosen == "full" or (chosen == "auto" and bool(job.world.broadcast(shards_by_itself(parameters, memory))))


def directory_of(job: Job, name: str = "model") -> Path:
    """Where an input's model is: that of an emitted one is our own form."""
    directory = job.inputs[name]
    own = directory / "sprunec"
    return own if own.exists() else directory


def open_model(directory: Path, place: Place) -> CPMAnt:
    """The model in float32 on the device: what training and comparing work on."""
    return load_model(directory).float().to(place.device)


def traced(model: CPMAnt, config: ModelConfig) -> tuple[TracedBlock, ...]:
    return trace_blocks(model, example_inputs(config), block_kinds(config))


def traced_shape(config: ModelConfig) -> tuple[TracedBlock, ...]:
    """The blocks of a config's model, without weights."""
    return traced(empty_model(config), config)


def open_data(job: Job, config: ModelConfig) -> Data:
    """What the data pass has made, with the user's own files where it only says where to look."""
    directory = job.inputs["data"]
    width, order = job.options["max_length"], {name: job.options[name] for name in ("batch_size", "seed")}
    if (directory / SET_ABOUT).exists():
        from sprunec.bmcook.data.stream import load_live_data

        return load_live_data(directory, job.files, config, max_length=width, world=job.world.size, **order)
    load = pairs.load_pair_data if pairs.has_pairs(directory) else load_text_data
    return load(directory, Packer(Prompted.of(config), width), **order)


def next_batches(job: Job, config: ModelConfig) -> Iterator[Batch]:
    """The batches of a look at the data: those that training would see next."""
    data, first = open_data(job, config), job.options["first_step"]
    return (data.batch(first + number) for number in range(job.options["batches"]))


def config_of(job: Job, name: str = "model") -> ModelConfig:
    return read_config(job.inputs[name])


@dataclass(frozen=True)
class Lesson:
    """A training pass's distillation: the objective, None without one, and what the user should know about it."""

    objective: Distiller | None = None
    notes: tuple[str, ...] = ()

    def metrics(self, last: dict[str, Any]) -> dict[str, Any]:
        """What the pass's last event says about it; nothing without a teacher."""
        found = {"distillation": last["distillation"]} if self.objective is not None else {}
        return found | ({"notes": list(self.notes)} if self.notes else {})


def open_lesson(job: Job, student: nn.Module, place: Place, blocks: Sequence[TracedBlock] = ()) -> Lesson:
    """The distillation that the options ask for; a pair whose student state was cut away is dropped, with a note.

    Args:
        blocks: what was traced of the student before it got its gates.

    Raises:
        InputError: two states are of different widths, and nothing projects.
    """
    options = job.options.get("distillation")
    if options is None:
        return Lesson()
    here, there = config_of(job), config_of(job, "teacher")
    written = [Pair.read(pair) for pair in options["pairs"]] if options["hidden"] else []
    pairs = [pair for pair in written if pair.student.module in state_widths(here)]
    projections = make_projections(
        pairs,
        [(pair.student.width(here), pair.teacher.width(there)) for pair in pairs],
        project=options["project"],
        seed=job.options["seed"],
        device=place.device,
    )
    teacher = open_model(job.inputs["teacher"], place)
    seen = observable(student, [pair.student for pair in pairs], blocks)
    taught = observable(teacher, [pair.teacher for pair in pairs])
    notes = [f"{pair} is not distilled: {pair.student.module} has been cut" for pair in written if pair not in pairs]
    return Lesson(Distiller(teacher, Weights.of(options), pairs, seen, taught, projections), tuple(notes))
