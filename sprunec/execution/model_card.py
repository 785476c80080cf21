"""The README.md of an emitted directory, a model card: what the model was, what was cut, and what is known of the rest.

What stands in it follows from the note that the directory carries (see `checkpoint/provenance.py`), and from the card
of the model that was cut, whose licence holds for what is left of it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sprunec.durable import write_new
from sprunec.families.base_config import ModelConfig
from sprunec.families.cards import card_of
from sprunec.plan.export_formats import FORMATS, Opening
from sprunec.plan.schema import properties
from sprunec.units import SUBLAYERS, UNITS, sublayers_of

CARD = "README.md"
LARGEST = 2**16  # bytes that are looked into for a licence
TAGS = ("pruned", "sprunec")
_ENTRY = re.compile(r"""^(license|license_name|license_link):[ \t]*["']?([^\s"'\[\]{}]+)["']?[ \t]*$""", re.MULTILINE)


def put_card(
    directory: Path, note: Mapping[str, Any], written: Mapping[str, Any], models: Sequence[ModelConfig]
) -> None:
    """Write the card of a directory, if its format has one.

    Args:
        note: see `Report.origin`.
        written: what the format has said of it.
        models: the one that entered the plan, and what is left of it.
    """
    if (opening := FORMATS[directory.name].opening) is not None:
        write_new(directory / CARD, model_card(note, directory.name, opening(directory, written), *models))


def model_card(note: Mapping[str, Any], form: str, opening: Opening, before: ModelConfig, after: ModelConfig) -> str:
    """Write the card of one format."""
    plan, base = note["plan"], base_name(note)
    checkpoint = plan["model"]["checkpoint"]
    licence = read_licence(Path(checkpoint)) if checkpoint is not None else {}
    front = {"library_name": opening.package, **({"base_model": base} if base else {}), **licence}
    head = ["---", *(f"{key}: {json.dumps(value)}" for key, value in front.items())]
    head += ["tags:", *(f"- {tag}" for tag in TAGS), "---"]
    dtype = note["formats"].get(form, {}).get("dtype")
    about = f"{100 * after.parameters() / before.parameters():.1f} % of its parameters are left"
    about += f", stored in {dtype}" if dtype else ""
    parts = {
        "": [
            *head,
            "",
            f"# {base or plan['name']}, pruned",
            "",
            f"{about}. Made by sprunec {note['versions']['sprunec']}.",
        ],
        "What was cut": _sizes(before, after),
        "Losses": list(_losses(note)),
        "Proof": list(_proof(note, form)),
        "How to open it": ["```python", *opening.code, "```", *(["", opening.remark] if opening.remark else [])],
        "The plan": ["```json", plan_json(written_plan(plan, base)), "```"],
    }
    texts = ["\n".join([*([f"## {name}", ""] if name else []), *lines]) for name, lines in parts.items() if lines]
    return "\n\n".join(texts) + "\n"


def base_name(note: Mapping[str, Any]) -> str:
    """Name the model that entered the plan: as the hub does, or as its directory is called; a file is none."""
    if "hub" in note:
        return str(note["hub"]["name"])
    checkpoint = note["plan"]["model"]["checkpoint"] or ""
    return os.path.basename(os.path.abspath(checkpoint)) if os.path.isdir(checkpoint) else ""


def read_licence(directory: Path) -> dict[str, str]:
    """Read what the front matter of a model's card says of its licence; nothing where there is none to read."""
    try:
        with (directory / CARD).open("rb") as file:
            text = file.read(LARGEST).decode("utf-8", "replace").replace("\r\n", "\n")
    except OSError:
        return {}
    front = re.match(r"---\n(.*?)\n---\s", text, re.DOTALL)
    found = dict(_ENTRY.findall(front[1])) if front is not None else {}
    # A link to a file that stood beside that card would lead nowhere.
    return {key: value for key, value in found.items() if key != "license_link" or value.startswith("https://")}


def _sizes(before: ModelConfig, after: ModelConfig) -> list[str]:
    """Set the sizes beside each other, and where layers differ list them one by one."""
    rows: list[tuple[str, ...]] = [("parameters", f"{before.parameters():,}", f"{after.parameters():,}")]
    rows.append(("layers", *(str(sum(bool(layer.counts) for layer in config.layers)) for config in (before, after))))
    for kind in SUBLAYERS:
        there = [sum(kind in sublayers_of(layer.counts) for layer in config.layers) for config in (before, after)]
        rows.append((f"{UNITS[kind].several}", *map(str, there)))
    units = [unit for unit in UNITS if any(unit in layer.counts for layer in before.layers)]
    rows += [(UNITS[unit].several, *(_range(config, unit) for config in (before, after))) for unit in units]
    cache = [card_of(config).cache_bytes(config) for config in (before, after)]
    rows += [("key-value cache, bytes a token", *(f"{size:,}" for size in cache))] if None not in cache else []
    lines = _table(("", "before", "after"), rows)
    if len({tuple(layer.counts.items()) for layer in after.layers}) == 1:
        return lines
    layers = [(str(index), *(_count(layer.counts, unit) for unit in units)) for index, layer in enumerate(after.layers)]
    return [*lines, "", *_table(("layer", *(UNITS[unit].several for unit in units)), layers)]


def _range(config: ModelConfig, unit: str) -> str:
    counts = {layer.counts[unit] for layer in config.layers if unit in layer.counts}
    return " to ".join(f"{each:,}" for each in dict.fromkeys((min(counts), max(counts)))) if counts else "none"


def _count(counts: Mapping[str, int], unit: str) -> str:
    return f"{counts[unit]:,}" if unit in counts else "absent"


def _losses(note: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        (
            role,
            f"{found['parameters']:,}",
            *(_number(found[key], form) for key, form in (("loss", ".4f"), ("perplexity", ".2f"))),
        )
        for role, found in note["models"].items()
        if found["loss"] is not None
    ]
    if rows:
        yield from _table(("model", "parameters", "loss, nats a token", "perplexity"), rows)
        yield ""
        yield "Of held-out text of the data in the plan. Masked: the whole model, what was cut multiplied by zero."


def _proof(note: Mapping[str, Any], form: str) -> Iterator[str]:
    """Say how far apart the models are that were compared."""
    rows = [
        (what, *(_number(found.get(key), ".2g") for key in ("max_abs_difference", "tolerance")), f"{found['tokens']:,}")
        for what, found in (
            ("the cut model and the masked one", note["comparison"]),
            ("this directory, opened again, and the cut model", note["formats"].get(form)),
        )
        if found is not None
    ]
    if rows:
        yield from _table(("compared", "largest difference of a logit", "tolerance", "tokens"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruled = ["---", *["---:"] * (len(heads) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (heads, ruled, *rows)]


def _number(value: float | None, form: str) -> str:
    return "not finite" if value is None else f"{value:{form}}"


def written_plan(resolved: Mapping[str, Any], base: str) -> dict[str, Any]:
    """Write a plan as users do: without what is as by default, and with the names of files for their places."""
    model = {"path": base} if base else {"config": resolved["model"]["config"]}
    data = dict(resolved["data"] or {})
    paths, name = data.pop("paths", None), data.pop("name", "")  # of a data set of datasets, as it was written
    sections: dict[str, Mapping[str, Any]] = {
        "data": {**data, "path": name or paths},
        "engine": {"precision": resolved["engine"]["precision"]},
        "evaluate": {"tokens": resolved["evaluate_tokens"]},
        "compare": {"tokens": resolved["compare_tokens"]},
        "outputs": {"checkpoint": resolved["checkpoint_name"]},
    }
    rules, passes = properties("plan"), [(each["name"], each["options"]) for each in resolved["passes"]]
    written = {name: _unusual(rules[name], given) for name, given in sections.items()}
    head = {"name": resolved["name"], "seed": resolved["seed"], "model": model}
    steps = [{"pass": name, **_unusual(f"passes/{name}", options)} for name, options in passes]
    return {**head, **{name: given for name, given in written.items() if given}, "passes": steps}


def _unusual(schema: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is as the schema has it by default, and what is not there."""
    usual = {key: rule.get("default") for key, rule in properties(schema).items()}
    return {key: _bare(value) for key, value in given.items() if value not in (None, [], {}, usual.get(key))}


def _bare(value: Any) -> Any:
    """Take the folders of this machine away from paths."""
    if isinstance(value, Mapping):
        return {key: _bare(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_bare(inner) for inner in value]
    return os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else value


def plan_json(plan: Mapping[str, Any]) -> str:
    """Write a section a line, and a pass a line."""
    lines = {key: json.dumps(value, ensure_ascii=False) for key, value in plan.items()}
    passes = ",\n".join(f"    {json.dumps(each, ensure_ascii=False)}" for each in plan.get("passes") or ())
    lines["passes"] = f"[\n{passes}\n  ]"
    return "{\n" + ",\n".join(f'  "{key}": {line}' for key, line in lines.items()) + "\n}"
