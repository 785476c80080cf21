"""Measure what each choice of a search, alone in the dense model, does to the model's output.

The digest of what is found depends on no target: another one is solved for from the same damages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sprunec.errors import InputError
from sprunec.families.base_config import ModelConfig
from sprunec.graph.arithmetic import Text
from sprunec.graph.builder import Builder
from sprunec.graph.choice_needs import Measuring, choices_measured
from sprunec.graph.graph import Node
from sprunec.graph.needs import Needs
from sprunec.graph.options import CalibrationOptions
from sprunec.passes.job import Job, O
from sprunec.plan.declared import CRITERIA, Criterion, Pass, PassSpec
from sprunec.plan.scale import KEPT_INSIDE
from sprunec.plan.search.choices import FINER, Choice, choices
from sprunec.units import INSIDE, SUBLAYERS, gate_units

if TYPE_CHECKING:
    from torch import Tensor

    from sprunec.data.batches import Batch
    from sprunec.masks.search.choice_damages import ChoiceDamages
    from sprunec.masks.search.divergence import Divergence
    from sprunec.masks.search.fisher import Fisher, Inside
    from sprunec.models.block_by_block import BlockByBlock
    from sprunec.models.hidden_states import HiddenStates
    from sprunec.rewrite.trace import TracedBlock

# whose units a choice keeps
BEST = {"kv_group": "reconstruction", "head": "reconstruction", "dim_head": "activation", "dim_ff": "activation"}
INSIDE_BLOCKS = ("squares", "products")  # what criteria need that look there, as the refit does
STAGES = {"fisher": ("dense", "gradients", "choices"), "kl": ("dense", "choices")}


@dataclass(frozen=True, kw_only=True)
class ChoiceOptions(CalibrationOptions):
    """Which choices there are, see `plan.search.choices`, and how their damages are measured.

    Attributes:
        batches: those that choices are refitted on.
        damage_batches: those behind them, that damages are measured on.
        criterion: whose best units a choice keeps; None: dims by activation, heads and groups by reconstruction.
        damage: "fisher" or "kl".
        samples: of "fisher", how many next tokens are drawn at each position.
        ridge: see `least_squares.refit`.
    """

    units: tuple[str, ...]
    grid: Mapping[str, Sequence[int]] = field(default_factory=dict)
    multiple_of: Mapping[str, int] = field(default_factory=dict)
    criterion: str | None = None
    damage: str
    damage_batches: int
    samples: int = 1
    ridge: float


def add(build: Builder, spec: PassSpec) -> str:
    """Add the node that measures the choices of a search -> its name; its artifact is `damages_file.Damages`."""
    options = build.options(ChoiceOptions, spec, precision="fp32")
    inputs = {"model": build.model, "data": build.data}
    return build.add("score-choices", options, inputs, "-".join(options.units), about=f"{options.damage} damages")


def needs(build: Builder, node: Node) -> Needs:
    model, options = build.sizes[node.inputs["model"]], node.options
    products = [unit for unit, each in _criteria(options).items() if each.needs == "products"]
    return choices_measured(model, measuring(model.config, options, products), build.keep)


def measuring(config: ModelConfig, options: ChoiceOptions, products: Sequence[str] = ()) -> Measuring:
    """Say how choices are measured; `products`: kinds of units that are scored by these."""
    changing = [choice for choice in _listed(config, options) if not choice.is_dense(config)]
    measured = Text(options.damage_batches * options.batch_size, options.max_length)
    samples = options.samples if options.damage == "fisher" else 0
    fitted, batch = Text(options.sequences, options.max_length), options.batch_size
    return Measuring(fitted, measured, changing, options.units, products, samples, batch)


def _listed(config: ModelConfig, options: ChoiceOptions) -> list[Choice]:
    return choices(config, options.units, options.grid, options.multiple_of, FINER[options.damage])


def _criteria(options: ChoiceOptions) -> dict[str, Criterion]:
    """By kind of unit that is cut, whose best ones a choice keeps."""
    return {unit: CRITERIA[options.criterion or BEST[unit]] for unit in options.units if unit in INSIDE}


def run(job: Job[ChoiceOptions]) -> dict[str, Any]:
    from sprunec.masks.search.choice_damages import ChoiceDamages
    from sprunec.masks.search.damages_file import Damages, save_damages

    options, config = job.options, job.config()
    listed = _listed(config, options)
    criteria = _criteria(options)
    early = {each.name: [unit for unit in criteria if criteria[unit] == each] for each in criteria.values()}
    early = {name: units for name, units in early.items() if CRITERIA[name].needs not in INSIDE_BLOCKS}
    scores = {key: value for name, units in early.items() for key, value in job.scores(CRITERIA[name], units).items()}
    known = {number: 0.0 for number, choice in enumerate(listed) if choice.is_dense(config)}
    found = ChoiceDamages(config, listed, scores, known, criteria, criteria, options.ridge)
    tokens = _measured(job, found)
    rows = tuple((choice, found.damages[number]) for number, choice in enumerate(listed))
    save_damages(job.out, Damages(options.damage, tokens, found.scores, rows))
    return {"choices": len(rows), "damage": options.damage, "tokens": tokens}


def _measured(job: Job[ChoiceOptions], found: ChoiceDamages) -> int:
    """Measure all choices -> on how many tokens."""
    from sprunec.masks.search.divergence import Divergence
    from sprunec.masks.search.fisher import Fisher
    from sprunec.masks.search.walked import Walked
    from sprunec.models.meta_models import empty_model, traced_shape
    from sprunec.rewrite.gating import insert_gates
    from sprunec.rewrite.trace import check_cuttable

    options, config = job.options, job.config()
    model, blocks, names = empty_model(config), traced_shape(config), STAGES[options.damage]
    check_cuttable(blocks, gate_units(options.units))
    gates = insert_gates(model, blocks, SUBLAYERS)
    refitted = list(job.batches(config))
    batches, asked = unseen_batches(job, refitted)
    stages = [stage(job, name, number, len(names)) for number, name in enumerate(names)]
    dense = Walked(stages[0].block_by_block(model, batches), asked, room(job, "front", len(blocks)))
    measure: Fisher | Divergence = Divergence(dense, blocks, gates)
    if options.damage == "fisher":
        measure = Fisher(dense, inside(job, blocks), room(job, "moving", 1)[0], options.samples, options.seed)
    measure_choices(found, measure, stages, stages[-1].block_by_block(model, refitted), blocks)
    return dense.tokens


def measure_choices(
    found: ChoiceDamages,
    measure: Fisher | Divergence,
    stages: Sequence[Job[Any]],
    way: BlockByBlock,
    blocks: Sequence[TracedBlock],
) -> None:
    """Prepare and measure, or go on from where this was stopped; `way` is that of the last stage."""
    *before, last = stages
    saved = last.saves.latest() if last.saves is not None else None
    if saved is None or not measure.load(saved["found"]["measure"]):
        measure.prepare(before[-1].saves, before[-1].tell_block)
    found.measure(way, blocks, measure)


def inside(job: Job[ChoiceOptions], blocks: Sequence[TracedBlock]) -> list[Inside]:
    """Find the projections in blocks that choices change, and make room for the gradients there."""
    from sprunec.masks.search.fisher import Inside
    from sprunec.rewrite.projections import projections

    cut = [[each for each in projections(block) if any(map(each.units, job.options.units))] for block in blocks]
    return list(map(Inside, blocks, cut, room(job, "inside", len(blocks))))


def unseen_batches(job: Job[Any], seen: Sequence[Batch], before: int = 0) -> tuple[list[Batch], list[Tensor]]:
    """Give the batches that damages are measured on, few rows each, and at which of their positions.

    Args:
        before: how many times as many others have been measured on.

    Raises:
        InputError: all of their text has been refitted on.
    """
    from sprunec.data.unseen import unseen
    from sprunec.models.block_by_block import few_rows

    data, first = job.data(job.config()), job.options.first_step + job.options.batches
    first += before * job.options.damage_batches
    found = [data.batch(first + number) for number in range(job.options.damage_batches)]
    found = list(few_rows(found, job.config(), KEPT_INSIDE))
    asked = unseen(found, seen)
    if not any(bool(some.any()) for some in asked):
        message = "all text that damages would be measured on is among what choices are refitted on"
        raise InputError.in_option("/data", message, "give more text, or ask for fewer batches")
    return found, asked


def stage(job: Job[O], name: str, number: int, of: int) -> Job[O]:
    """Let a part of the pass, which goes through all blocks, save by itself and tell of the whole."""

    def report(event: dict[str, Any]) -> None:
        steps = event["steps"]
        job.report(event | {"step": number * steps + event["step"], "steps": of * steps})

    saves = None if job.saves is None else replace(job.saves, directory=job.saves.directory / name)
    return replace(job, saves=saves, report=report)


def room(job: Job[ChoiceOptions], name: str, count: int) -> list[HiddenStates]:
    """Make room for hidden states, or gradients, in so many places."""
    from sprunec.models.hidden_states import HiddenStates

    keep, blocks = job.engine.get("hidden_states", "auto"), len(job.config().layers)
    folders = [None if job.saves is None else job.saves.directory / f"{name}-{index:05d}" for index in range(count)]
    return [HiddenStates(job.place, folder, keep, several=2 * blocks) for folder in folders]


SCORE_CHOICES = Pass(
    "score-choices",
    4,
    ChoiceOptions,
    ("model", "data"),
    "damages",
    needs=needs,
    needs_trained=True,
    by_block=True,
)
