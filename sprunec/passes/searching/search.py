"""Choose how much of every sublayer stays, so that the output changes least within all limits.

    score-choices, (measure-latency) -> search, (measure-finalists) -> what follows a mask

What choices do to the output is measured whatever the target is, so that another one is solved for in seconds. With
`refine`, a solution is then the place that it is looked around from, as often as that says:

    compensate, score-exchanges -> search, measure-finalists
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sprunec.durable import read_file, write_new
from sprunec.errors import InputError
from sprunec.file_digests import file_digest
from sprunec.graph.builder import Builder
from sprunec.graph.graph import Node
from sprunec.graph.options import Options
from sprunec.passes import compensate, cut, score_choices
from sprunec.passes.job import Job
from sprunec.passes.measuring import measure_latency
from sprunec.passes.searching import finalists, score_exchanges
from sprunec.passes.searching.finalists import write as write  # of a node's masks, too
from sprunec.plan.declared import Pass, PassSpec
from sprunec.plan.files import read_latency_table
from sprunec.plan.search.choices import Choice, chosen
from sprunec.plan.search.costs import Measure
from sprunec.plan.search.limits import Target, allowed, limit, measured
from sprunec.plan.search.solve import Program, Rules, Solution

if TYPE_CHECKING:
    from sprunec.masks.search.damages_file import Damages
    from sprunec.units import Kept

FITTED, UNSEEN = 8192, 4096  # tokens that choices are refitted on, and measured on, where the plan does not say
RIDGE = 0.1  # with which choices are refitted, where the plan leaves it open


@dataclass(frozen=True, kw_only=True)
class SearchOptions(Options):
    """What a solution must be like.

    Attributes:
        count: how many are found.
        table: the content of the file that says what choices take, where the user has named one.
    """

    units: tuple[str, ...]
    limits: Target
    count: int
    uniform: bool = False
    same_heads: bool = False
    whole_first: int = 0
    whole_last: int = 0
    most_absent: int | None = None
    table: str = ""


def lower(build: Builder, spec: PassSpec) -> None:
    """Solve for every target, and cut to what the chosen one keeps."""
    scored, timed = _scored(build, spec), dict[str, str]()
    damages, targets = score_choices.add(build, scored), spec.options["target"]
    masks = []
    for number, target in enumerate(targets, start=1):
        times = _times(build, scored, target["latency"], timed) if "latency" in target else ""
        inputs = {"model": build.model, "damages": damages, "latencies": times}
        masks.append(_solved(build, scored, inputs, number))
    taken = spec.options["chosen"] - 1
    if "parameters" in targets[taken]:
        sizes = {"unit": spec.options["units"], "target": {"parameters": targets[taken]["parameters"]}}
    else:
        build.left, sizes = build.left.unknown(), {}
    options = {key: value for key, value in spec.options.items() if key != "target"} | sizes
    cut.add(build, replace(spec, options=MappingProxyType(options)), masks[taken])


def _scored(build: Builder, spec: PassSpec) -> PassSpec:
    """Fill in on how many batches choices are refitted and measured, and how strongly drawn to the old weights."""
    data, given = build.plan.data, dict(spec.options)
    assert data is not None
    for key, tokens in (("batches", FITTED), ("damage_batches", UNSEEN)):
        given[key] = given[key] or math.ceil(tokens / (data.max_length * data.batch_size))
    given["ridge"] = given["ridge"] or RIDGE
    return replace(spec, options=MappingProxyType(given))


def _times(build: Builder, spec: PassSpec, asked: Mapping[str, Any], before: dict[str, str]) -> str:
    """Find the node that times choices as a target asks, or add it; none where the user has a table."""
    if spec.options["latency_table"] is not None:
        return ""
    setting = {"batch": asked["batch"], "length": asked["length"], "prefill": asked["phase"] == "prefill"}
    key = json.dumps(setting)
    if key not in before:
        before[key] = measure_latency.add(build, spec, **setting)
    return before[key]


def _solved(build: Builder, spec: PassSpec, inputs: Mapping[str, str], number: int) -> str:
    """Add what finds a solution for a target, and of several the best -> the node that gives its masks."""
    given, target = spec.options, spec.options["target"][number - 1]
    several, aside, files = len(given["target"]) > 1, number != given["chosen"], dict[str, Any]()
    saved = dict[str, Any]()
    if "latency" in target and given["latency_table"] is not None:
        files = {"table": (given["latency_table"],)}
    table = file_digest(given["latency_table"]) if files else ""
    if "save_mask" in given and not aside:
        saved = {"writes": {given["mask_form"]: given["save_mask"]}}
        saved |= {"provenance": build.provenance(given["units"], target)}
    options = build.options(SearchOptions, spec, limits=target, count=given["finalists"], table=table)
    suffix, about, refine = str(number) if several else "", target_words(target), given["refine"]
    if not several and options.count == 1 and not refine:
        return build.add("search", options, inputs, about=about, files=files, **saved)
    found, every = "", {"about": about, "files": files, "aside": aside}
    for rounds in range(refine + 1):
        last, here = rounds == refine, "-".join(filter(None, (suffix, str(rounds) if refine else "")))
        if found:
            near = {"model": compensate.refitted(build, spec, found, suffix=here), "masks": found}
            exchanges = score_exchanges.add(build, spec, near | {"damages": inputs["damages"]}, rounds, here)
            inputs = {**inputs, "exchanges": exchanges, "before": found}
        found = build.add("search", options, inputs, here, **every)
        found = finalists.add(build, spec, found, here, aside=aside, **(saved if last else {}))
    return found


def target_words(target: Target) -> str:
    """Write a target as `parameters -> 110,000,000; memory -> gigabytes 6, batch 8, length 4096`."""

    def words(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{key.replace('_', ' ')} {each}" for key, each in value.items())
        return f"{value:,}"

    return "; ".join(f"{key.replace('_', ' ')} -> {words(value)}" for key, value in target.items())


def run(job: Job[SearchOptions]) -> dict[str, Any]:
    """Raise PassError where there is no solution, with the least possible."""
    from sprunec.masks.search.damages_file import load_damages

    config, options, damages = job.config(), job.options, load_damages(job.inputs["damages"])
    near = load_damages(job.inputs["exchanges"]) if "exchanges" in job.inputs else damages
    pairs = [pair for pair in near.choices if allowed(config, pair[0], vars(options))]
    choices, alone = [choice for choice, _ in pairs], dict(damages.choices)
    limits = [limit(config, choices, each) for each in measured(config, options.limits, _seconds(job))]
    rules = Rules(options.uniform, options.same_heads, most_absent=options.most_absent)
    program = Program(choices, [damage for _, damage in pairs], limits, rules)
    found, rows = program.finalists(options.count), list[dict[str, Any]]()
    for each in found:
        solution = [choices[number] for number in each.taken]
        damage = math.fsum(alone[choice] for choice in solution)
        rows.append({"damage": damage, **_row(program, each), "parameters": chosen(config, solution).parameters()})
        rows[-1]["kept"] = _kept(job, damages, solution).to_json()
    if "before" in job.inputs:
        (before,) = json.loads(read_file(job.inputs["before"] / finalists.SOLUTIONS))
        rows += [before] if all(before["kept"] != row["kept"] for row in rows) else []
    write_new(job.out / finalists.SOLUTIONS, json.dumps(rows))
    write_new(job.out / "kept.json", json.dumps(rows[0].pop("kept")))
    notes = [f"the solver stopped at a gap of {found[0].gap:.2%}: there may be a better one"] if found[0].gap else []
    return rows[0] | {"solutions": len(rows), "choices": len(choices)} | ({"notes": notes} if notes else {})


def _seconds(job: Job[SearchOptions]) -> Measure | None:
    """Open the table that says how long models take, where one is needed."""
    if (asked := job.options.limits.get("latency")) is None:
        return None
    path = job.inputs["latencies"] / measure_latency.TABLE if "latencies" in job.inputs else job.files["table"][0]
    table = read_latency_table(path)
    for key in ("batch", "length"):
        if table.document[key] != asked[key]:
            message = f"this table is of {key} {table.document[key]}, and the target's latency of {key} {asked[key]}"
            raise InputError.at(path, message, "measure it anew, or ask for what was measured")
    return table.seconds(asked["phase"])


def _row(program: Program, solution: Solution) -> dict[str, Any]:
    """Say what a solution has of what is limited, in the limits' units."""
    got = {
        each.name: {"asked": each.most / each.unit, "got": each.of(solution.taken) / each.unit}
        for each in program.limits
    }
    absent = sum(not program.choices[number].kept for number in solution.taken)
    return {"gap": solution.gap, "absent": absent, "limits": got}


def _kept(job: Job[SearchOptions], damages: Damages, solution: Sequence[Choice]) -> Kept:
    """Say what a solution keeps, by the indices of the plan's input model."""
    from sprunec.families.base_config import everything
    from sprunec.masks.search.members import members
    from sprunec.units import Kept

    whole = everything(job.config())
    layers = list(whole)
    for choice in solution:
        layers[choice.layer] = members(damages.scores, Kept(layers), choice)
    left = {
        (index, unit): [each in layers[index].get(unit, ()) for each in indices]
        for index, layer in enumerate(whole)
        for unit, indices in layer.items()
    }
    return job.kept().then(left)


def report(document: dict[str, Any], node: Node, metrics: Mapping[str, Any]) -> None:
    """List the solution; where it is measured beside others, what has been taken stands in its place."""
    finalists.tell(document, node, metrics, node.name)


SEARCH = Pass(
    "search",
    1,
    SearchOptions,
    ("model", "damages"),
    "masks",
    ("latencies", "exchanges", "before"),
    lower=lower,
    report=report,
    removes="units",
    needs_trained=True,
)
