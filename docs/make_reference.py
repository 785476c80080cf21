"""Write docs/plan.md, the reference of plans, from the schemas: python docs/make_reference.py"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sprunec.families.cards import FAMILIES, card
from sprunec.plan.schema import load_schema, pass_names, properties

HEAD = """# Plans

Every key that a plan may have, made from the schemas in `schemas/` by `python docs/make_reference.py`. Paths are
relative to the plan's folder.
"""


def reference() -> str:
    """The whole page."""
    parts = [HEAD, section("A plan", load_schema("plan")["description"], properties("plan"))]
    plan = properties("plan")
    for name in ("model", "data", "engine", "evaluate"):
        parts.append(section(f"`{name}`", plan[name].get("description", ""), properties(plan[name])))
    parts.append(section("Model configs", load_schema("model")["description"], properties("model")))
    training = properties("training")
    text = load_schema("training")["description"]
    parts.append(section("Training options", text, training, {name: card(name).training for name in FAMILIES}))
    distillation = properties(training["distillation"])
    parts.append(section("Distillation", training["distillation"]["description"], distillation))
    cache = distillation["teacher_cache"]
    parts.append(section("Teacher cache", cache["description"], properties(cache)))
    limits = properties("limits")
    parts.append(section("Limits of a search", load_schema("limits")["description"], limits))
    for name in ("operations", "memory", "latency"):
        parts.append(section(f"Limit `{name}`", limits[name]["description"], properties(limits[name])))
    for name in pass_names():
        own = properties(f"passes/{name}")
        text = load_schema(f"passes/{name}")["description"]
        if training.keys() <= own.keys():
            own = {key: value for key, value in own.items() if key not in training}
            text += " Takes every training option."
        parts.append(section(f"Pass `{name}`", text, own))
    gguf = properties("passes/emit")["gguf"]
    parts.append(section("Format `gguf`", gguf["description"], properties(gguf)))
    target = properties("passes/train-mask")["target"]
    parts.append(section("Targets", target["description"], properties(target)))
    return "\n".join(parts)


def section(
    title: str, text: str, keys: Mapping[str, Mapping[str, Any]], families: Mapping[str, Mapping[str, Any]] = {}
) -> str:
    rows = [row(key, schema, families) for key, schema in keys.items() if key not in ("pass", "$schema")]
    table = "\n".join(["| key | what it is | allowed | default |", "|---|---|---|---|", *rows])
    return f"## {title}\n\n{sentence(text)}\n\n{table}\n"


def row(key: str, schema: Mapping[str, Any], families: Mapping[str, Mapping[str, Any]]) -> str:
    default = f"`{json.dumps(schema['default'])}`" if "default" in schema else ""
    default += "".join(f"; family {name}: `{json.dumps(own[key])}`" for name, own in families.items() if key in own)
    cells = (f"`{key}`", str(schema.get("description", "")), allowed(schema), default)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def allowed(schema: Mapping[str, Any]) -> str:
    """The values a key takes, in short."""
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    kinds = schema.get("type", [])
    words = [" or ".join([kinds] if isinstance(kinds, str) else kinds)]
    signs = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    words += [f"{word} {schema[key]:,}" for key, word in signs.items() if key in schema]
    if not any(words) and schema.get("examples"):
        return f"such as `{json.dumps(schema['examples'][0])}`"
    return ", ".join(word for word in words if word)


def sentence(text: str) -> str:
    text = text.strip()
    return (text[:1].upper() + text[1:]).rstrip(".") + "." if text else ""


if __name__ == "__main__":
    (Path(__file__).parent / "plan.md").write_text(reference(), encoding="utf-8")
