"""A plan: what the user wants, read from a file, checked as a whole and frozen.

read_plan(path)    the Plan, or InputError with everything that is wrong
check_plan(path)   the Plan if there is one, and everything found, warnings too
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sprunec.data.file_sets import expanded
from sprunec.errors import Diagnostic, InputError
from sprunec.families.base_config import ModelConfig
from sprunec.plan.bmcook_flags import NO_FLAGS, Flags
from sprunec.plan.checks import CHECKS
from sprunec.plan.declared import PASSES, PassSpec
from sprunec.plan.model_config import Fetch, model_config, open_directory
from sprunec.plan.open_plan import override, read_any
from sprunec.plan.schema import resolve
from sprunec.plan.schema_errors import schema_findings
from sprunec.plan.source import Source, has_errors
from sprunec.plan.written_plan import WrittenPlan, as_list

NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class ModelSource:
    """The model that enters the plan; without a checkpoint it starts from its family's initialisation.

    Attributes:
        start_step: how many training steps it has had.
    """

    config: ModelConfig
    checkpoint: Path | None
    start_step: int = 0


@dataclass(frozen=True)
class DataSource:
    """Where data comes from; `held_out` is the share at its end, or a file or set of its own.

    Attributes:
        paths: files; of a cpm-live set, and of a data set of datasets, its directory.
        tokenizer: "characters", a vocabulary file or a tokenizer.json.
        column: of tables and JSON lines.
        packing: "concatenated" or "documents": what stands in a row.
        template: "plain" or "chat": how a pair is written out.
        name, subset, split: of a data set of datasets, whose `held_out` may be another split.
        vocab, block_size, order, packed_prompts: of a cpm-live set; others have no use for them.
    """

    source: str
    paths: tuple[Path, ...]
    tokenizer: str | Path
    held_out: float | Path | str
    max_length: int
    batch_size: int
    vocab: Path | None
    block_size: int
    order: str
    packed_prompts: str
    column: str = "text"
    packing: str = "concatenated"
    template: str = "plain"
    name: str = ""
    subset: str | None = None
    split: str = "train"


@dataclass(frozen=True)
class Engine:
    """What training runs on; of these only the precision changes its result.

    Attributes:
        sharding: whether each of several processes keeps all weights, gradients and optimizer states, or a part.
        activation_checkpointing: compute each block's activations again in the backward pass instead of keeping them.
        compile: run blocks that train as kernels that `torch.compile` makes of them.
        offload: keep weights and optimizer states in the memory of the CPU.
        hidden_states: where those between two blocks are kept, where a model is gone through block by block.
        teacher_weights: where those of a model that is distilled from stay.
        timeout: seconds that a process waits for another in one step of their work.
    """

    name: str
    device: str
    precision: str
    sharding: str = "auto"
    activation_checkpointing: bool = False
    compile: bool = False
    offload: bool = False
    hidden_states: str = "auto"
    teacher_weights: str = "auto"
    timeout: int = 600


@dataclass(frozen=True)
class Plan:
    """Everything a run depends on.

    Attributes:
        compare_tokens: on how many tokens models are compared; None: as many as their size allows.
        checkpoint_name: the file in the run's directory for the final weights in the input's shape; None: no such file.
        file: None for a plan that was made in memory.
    """

    name: str
    seed: int
    model: ModelSource
    data: DataSource | None
    engine: Engine
    evaluate_tokens: int | None
    evaluate: bool
    passes: tuple[PassSpec, ...]
    file: Path | None
    checkpoint_name: str | None = None
    compare_tokens: int | None = None


Check = Callable[[WrittenPlan], None]
Checked = tuple[Plan | None, tuple[Diagnostic, ...]]


def read_plan(path: str | Path, overrides: Mapping[str, Any] = NOTHING, flags: Flags = NO_FLAGS) -> Plan:
    """Read and check a plan as `check_plan` does; raise InputError with everything that is wrong."""
    plan, found = check_plan(path, overrides=overrides, flags=flags)
    if plan is None:
        raise InputError(*found)
    return plan


def check_plan(
    path: str | Path,
    *,
    strict: bool = False,
    overrides: Mapping[str, Any] = NOTHING,
    flags: Flags = NO_FLAGS,
    incomplete: bool = False,
    fetch: Fetch | None = None,
    advice: Sequence[Check] = (),
) -> Checked:
    """Find everything, errors first, in file order; the plan is None when there is an error.

    Args:
        path: a native plan, or BMCook's bmcook.json.
        strict: a missing checkpoint, data or mask file is an error.
        overrides: values by JSON pointer, put into the plan before it is checked.
        flags: of BMCook's script.
        incomplete: a model config that nobody has named, or that is still on the hub, may be missing; the plan is then
            None without an error.
        fetch: gets a model of the hub that is not here yet; None: that is an error.
        advice: checks that only warn, of a plan without errors; see `plan/advice`.
    """
    try:
        source = override(read_any(path, flags), overrides)
    except InputError as error:
        return None, error.diagnostics
    return check_source(source, strict=strict, incomplete=incomplete, fetch=fetch, advice=advice)


def check_source(
    source: Source,
    *,
    strict: bool = False,
    incomplete: bool = False,
    fetch: Fetch | None = None,
    advice: Sequence[Check] = (),
) -> Checked:
    """Do as `check_plan` for a plan that is in memory."""
    if has_errors(source.problems) and source.origins:
        return None, _in_order(source.problems, source.file)  # a plan that could not be made is not looked into
    plan = WrittenPlan(source, [*source.problems, *schema_findings(source, "plan")])
    opened = open_directory(plan, incomplete=incomplete, fetch=fetch)
    plan = WrittenPlan(opened, plan.found, strict=strict)
    plan.config = model_config(plan, incomplete=incomplete)
    for check in CHECKS:
        check(plan)
    for check in advice if not has_errors(plan.found) else ():
        check(plan)
    failed = plan.config is None or has_errors(plan.found)
    return None if failed or plan.config is None else _plan(plan, plan.config), _in_order(plan.found, source.file)


def _in_order(found: Iterable[Diagnostic], file: str) -> tuple[Diagnostic, ...]:
    def place(each: Diagnostic) -> tuple[Any, ...]:
        return each.severity != "error", each.file != file, each.file, each.line, each.column

    return tuple(sorted(dict.fromkeys(found), key=place))


def _plan(plan: WrittenPlan, config: ModelConfig) -> Plan:
    model, checkpoint = plan.options("model"), plan.written["model"].get("checkpoint")
    start = None if checkpoint is None else plan.source.folder / checkpoint
    passes = tuple(PassSpec(step.name, step.options, step.pointer) for step in plan.steps)
    return Plan(
        name=plan.written["name"],
        seed=resolve("plan", plan.written)["seed"],
        model=ModelSource(config, start, model.get("start_step", 0)),
        data=_data(plan) if "data" in plan.written else None,
        engine=Engine(**plan.options("engine")),
        evaluate_tokens=plan.options("evaluate")["tokens"],
        evaluate="evaluate" in plan.written or any(PASSES[spec.name].trains for spec in passes),
        passes=passes,
        file=Path(plan.source.file),
        checkpoint_name=plan.options("outputs").get("checkpoint"),
        compare_tokens=plan.options("compare")["tokens"],
    )


def _data(plan: WrittenPlan) -> DataSource:
    section, folder = plan.options("data"), plan.source.folder
    del section["tokenizer"]
    held_out, vocab = section.pop("held_out"), section.pop("vocab", None)
    source, named = section["source"], as_list(section.pop("path", []))
    return DataSource(
        paths=tuple(chain.from_iterable(expanded(folder / path, source) for path in named)),
        name=str(named[0]) if source == "datasets" else "",
        held_out=folder / held_out if isinstance(held_out, str) and source != "datasets" else held_out,
        tokenizer=plan.tokenizer,
        vocab=None if vocab is None else folder / vocab,
        **section,
    )
