"""Turn what a JSON Schema validator says into findings that name the place, the value and the remedy.

One mistake gives one finding. A rule's `errorMessage` is its remedy; without one it is made from the rule's description
and first example, so that the words live in the schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from functools import reduce
from operator import getitem
from typing import Any

from jsonschema.exceptions import ValidationError

from sprunec.errors import Diagnostic, series, show
from sprunec.plan.json_reader import escape
from sprunec.plan.schema import Schema, properties, validator
from sprunec.plan.source import Source

_KINDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "an object",
    "array": "a list",
    "null": "null",
}


def schema_findings(source: Source, schema: str, prefix: str = "") -> list[Diagnostic]:
    """Tell everything the schema has against the value at `prefix`, one finding per mistake."""
    errors = list(validator(schema).iter_errors(reduce(getitem, prefix.split("/")[1:], source.value)))
    wrong_type = {_pointer(error, prefix) for error in errors if error.validator == "type"}
    found: dict[tuple[str, str], Diagnostic] = {}
    for error in errors:
        pointer = _pointer(error, prefix)
        if pointer in wrong_type and error.validator != "type":
            continue
        for finding in _explain(source, pointer, error):
            found.setdefault((finding.pointer, finding.message), finding)
    return _without_echoes(list(found.values()))


def nearest(word: str, known: Any) -> str:
    """Guess the known word that was meant; return nothing where none is like it."""
    names = [name for name in known if isinstance(name, str)]
    folded = {name.lower().replace("-", "_"): name for name in names}
    close = get_close_matches(word.lower().replace("-", "_"), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else ""


def remedy(rule: Schema) -> str:
    """Say what to write, from the schema's own words."""
    if "errorMessage" in rule:
        return str(rule["errorMessage"])
    what = str(rule.get("description", "")).partition(";")[0].partition(":")[0].partition(",")[0]
    example = f"e.g. {show(rule['examples'][0])}" if rule.get("examples") else ""
    return ", ".join(part for part in (f"give {what}" if what else "", example) if part)


def _pointer(error: ValidationError, prefix: str) -> str:
    return prefix + "".join(f"/{escape(step)}" for step in error.absolute_path)


def _explain(source: Source, pointer: str, error: ValidationError) -> Iterator[Diagnostic]:
    keyword = str(error.validator)
    if keyword in ("additionalProperties", "unevaluatedProperties"):
        known = properties(error.schema)
        listed = ", ".join(key for key in known if key != "$schema")
        for key in (key for key in error.instance if key not in known):
            near = nearest(key, [name for name in known if name not in error.instance])
            hint = f"did you mean {show(near)}?" if near else f"known keys are {listed}"
            yield source.find("unknown-key", f"{pointer}/{escape(key)}", f"unknown key {show(key)}", hint, key=True)
    elif keyword == "required":
        yield _missing_key(source, pointer, error)
    else:
        code, message = _described(keyword, error)
        hint = "name each once" if keyword == "uniqueItems" else _choice(error) or remedy(error.schema)
        yield source.find(code, pointer, message, hint)


def _missing_key(source: Source, pointer: str, error: ValidationError) -> Diagnostic:
    """Name the missing key, which the validator, with an error for each, names only in its message."""
    key = next(key for key in error.validator_value if error.message.startswith(repr(key)))
    rule = properties(error.schema).get(key)
    if not rule:  # required by a branch of the schema that doesn't describe it
        rule = properties(properties("plan").get(pointer.removeprefix("/"), {})).get(key, {})
    example = show(rule["examples"][0], 200) if rule.get("examples") else "..."
    what = str(rule.get("description", "")).partition(";")[0]
    hint = f'add "{key}": {example}' + (f", {what}" if what else "")
    return source.find("missing-key", pointer, f'"{key}" is missing', hint)


def _choice(error: ValidationError) -> str:
    if error.validator not in ("enum", "const"):
        return ""
    choices = error.validator_value if error.validator == "enum" else [error.validator_value]
    if isinstance(error.instance, str) and (near := nearest(error.instance, choices)):
        return f"did you mean {show(near)}?"
    return str(error.schema.get("errorMessage") or f"choose {series([show(choice) for choice in choices], 'or')}")


def _described(keyword: str, error: ValidationError) -> tuple[str, str]:
    """Give a code and a message for all rules but those about keys."""
    limit, value, shown = error.validator_value, error.instance, show(error.instance)
    match keyword:
        case "type":
            kinds = [limit] if isinstance(limit, str) else limit
            return "wrong-type", f"{shown} is not {' or '.join(_KINDS[kind] for kind in kinds)}"
        case "enum" | "const":
            key = next((step for step in reversed(error.absolute_path) if isinstance(step, str)), "")
            key = key.removesuffix("s") if error.absolute_path and isinstance(error.absolute_path[-1], int) else key
            kind = f"a known {key}" if key and isinstance(value, str) else "a choice"
            return "not-a-choice", f"{shown} is not {kind}"
        case "minimum" | "exclusiveMinimum" | "maximum" | "exclusiveMaximum":
            over, under = ("above", "below") if "inimum" in keyword else ("below", "above")
            return "out-of-range", f"{shown} is {f'not {over}' if value == limit else under} {show(limit)}"
        case "minLength" | "maxLength" | "minItems" | "maxItems" | "minProperties":
            side = "more" if keyword.startswith("max") else "fewer"
            what = "characters" if isinstance(value, str) else "entries"
            more = "out-of-range", f"{shown} has {side} than {limit} {what}"
            return more if value else ("empty", f"{shown} is empty")
        case "maxProperties":
            return "bad-combination", f"{series(list(value), 'and')} cannot be given together"
        case "pattern":
            return "bad-form", f"{shown} is not of the expected form"
        case "uniqueItems":
            return "repeated-value", f"{shown} names the same thing twice"
        case "not":
            return "bad-combination", f"{shown} does not belong here: {error.schema.get('description', '')}"
    return "bad-value", f"{shown} breaks the rule {keyword} {show(limit)}"


def _without_echoes(found: list[Diagnostic]) -> list[Diagnostic]:
    """Drop what is missing or too much in an object only because a key of it is misspelt: that is one mistake."""
    unknown = [finding for finding in found if finding.code == "unknown-key"]
    objects = {finding.pointer.rpartition("/")[0] for finding in unknown}
    meant = {(f.pointer.rpartition("/")[0], f.hint.removeprefix('did you mean "').removesuffix('"?')) for f in unknown}

    def echo(finding: Diagnostic) -> bool:
        if finding.code == "missing-key":
            return (finding.pointer, finding.message.split('"')[1]) in meant
        return finding.code == "bad-combination" and finding.pointer in objects

    return [finding for finding in found if not echo(finding)]
