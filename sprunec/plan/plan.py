"""A plan: what the user wants, read from a file, checked as a whole and frozen.

read_plan(path)    the Plan, or InputError with everything that is wrong
check_plan(path)   the Plan if there is one, and everything found, warnings too
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sprunec.errors import Diagnostic, InputError
from sprunec.families.base_config import ModelConfig
from sprunec.plan.bmcook_flags import NO_FLAGS, Flags
from sprunec.plan.checks import CHECKS
from sprunec.plan.declared import PASSES, PassSpec
from sprunec.plan.files import input_findings
from sprunec.plan.model_config import model_config, open_directory
from sprunec.plan.open_plan import override, read_any
from sprunec.plan.resolve import Draft, as_list
from sprunec.plan.schema import resolve
from sprunec.plan.schema_errors import schema_findings
from sprunec.plan.source import Source

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
        paths: files; of a cpm-live set its directory.
        tokenizer: "characters" or a vocabulary file.
        vocab, block_size, order, packed_prompts: of a cpm-live set; others have no use for them.
    """

    source: str
    paths: tuple[Path, ...]
    tokenizer: str | Path
    held_out: float | Path
    max_length: int
    batch_size: int
    vocab: Path | None
    block_size: int
    order: str
    packed_prompts: str


@dataclass(frozen=True)
class Engine:
    """What training runs on; of these only the precision changes its result.

    Attributes:
        sharding: whether each of several processes keeps all weights, gradients and optimizer states, or a part.
        activation_checkpointing: compute each block's activations again in the backward pass instead of keeping them.
        offload: keep weights and optimizer states in the memory of the CPU.
        timeout: seconds that a process waits for another in one step of their work.
    """

    name: str
    device: str
    precision: str
    sharding: str = "auto"
    activation_checkpointing: bool = False
    offload: bool = False
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


def read_plan(path: str | Path, overrides: Mapping[str, Any] = NOTHING, flags: Flags = NO_FLAGS) -> Plan:
    """Read and check a plan; raise InputError with everything that is wrong.

    Args:
        path: a native plan, or BMCook's bmcook.json.
        overrides: values by JSON pointer, put into the plan before it is checked.
        flags: of BMCook's script.
    """
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
) -> tuple[Plan | None, tuple[Diagnostic, ...]]:
    """Find everything, errors first, in file order; the plan is None when there is an error.

    Args:
        strict: a missing checkpoint, data or mask file is an error.
        incomplete: a model config that nobody has named may be missing; the plan is then None without an error.
    """
    try:
        source = override(read_any(path, flags), overrides)
    except InputError as error:
        return None, error.diagnostics
    return check_source(source, strict=strict, incomplete=incomplete)


def check_source(
    source: Source, *, strict: bool = False, incomplete: bool = False
) -> tuple[Plan | None, tuple[Diagnostic, ...]]:
    """Do as `check_plan` for a plan that is in memory."""
    if any(finding.severity == "error" for finding in source.problems) and source.origins:
        return None, _in_order(source.problems, source.file)  # a plan that could not be made is not looked into
    found = [*source.problems, *schema_findings(source, "plan")]
    source, about_directory = open_directory(source, Draft.of(source, found))
    found += about_directory
    draft = Draft.of(source, found)
    config, about_model = model_config(draft, incomplete=incomplete)
    found += about_model
    found += [finding for check in CHECKS for finding in check(draft, config)]
    found += input_findings(draft, config, strict)
    failed = config is None or any(finding.severity == "error" for finding in found)
    return None if failed or config is None else _plan(draft, config), _in_order(found, source.file)


def _in_order(found: Iterable[Diagnostic], file: str) -> tuple[Diagnostic, ...]:
    def place(each: Diagnostic) -> tuple[Any, ...]:
        return each.severity != "error", each.file != file, each.file, each.line, each.column

    return tuple(sorted(dict.fromkeys(found), key=place))


def _plan(draft: Draft, config: ModelConfig) -> Plan:
    value = draft.source.value
    passes = tuple(PassSpec(step.name, step.options or NOTHING, step.pointer) for step in draft.steps)
    checkpoint = value["model"].get("checkpoint")
    start = None if checkpoint is None else draft.folder / checkpoint
    return Plan(
        name=value["name"],
        seed=resolve("plan", value)["seed"],
        model=ModelSource(config, start, draft.section("model").get("start_step", 0)),
        data=_data(draft) if draft.has("data") else None,
        engine=Engine(**draft.section("engine")),
        evaluate_tokens=draft.section("evaluate")["tokens"],
        evaluate=draft.has("evaluate") or any(PASSES[spec.name].trains for spec in passes),
        passes=passes,
        file=Path(draft.source.file),
        checkpoint_name=draft.section("outputs").get("checkpoint"),
        compare_tokens=draft.section("compare")["tokens"],
    )


def _data(draft: Draft) -> DataSource:
    section = draft.section("data")
    held_out, tokenizer, vocab = section.pop("held_out"), section.pop("tokenizer"), section.pop("vocab", None)
    return DataSource(
        paths=tuple(draft.folder / path for path in as_list(section.pop("path", []))),
        held_out=draft.folder / held_out if isinstance(held_out, str) else held_out,
        tokenizer=tokenizer if tokenizer == "characters" else draft.folder / tokenizer,
        vocab=None if vocab is None else draft.folder / vocab,
        **section,
    )
