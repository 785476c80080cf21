"""Turn what a JSON Schema validator says into findings that name the place, the value and the remedy.

One mistake gives one finding. A rule's `errorMessage` is its remedy; without one it is made from the rule's description
and first example, so that the words live in the schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from jsonschema.exceptions import ValidationError

from sprunec.errors import Diagnostic, series, show
from sprunec.plan.json_reader import escape
from sprunec.plan.schema import properties, validator
from sprunec.plan.source import Source

_MISSING = "{} is missing"
_KINDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "object": "an object",
    "array": "a list",
    "null": "null",
}


def schema_findings(source: Source, schema: str) -> list[Diagnostic]:
    """Tell everything the schema has against the file's value, one finding per mistake."""
    errors = [
        ("".join(f"/{escape(step)}" for step in error.absolute_path), error)
        for error in validator(schema).iter_errors(source.value)
    ]
    wrong_type = {pointer for pointer, error in errors if error.validator == "type"}
    found: dict[tuple[str, str], Diagnostic] = {}
    for pointer, error in errors:
        if error.validator == "type" or pointer not in wrong_type:
            for finding in _explain(source, pointer, error):
                found.setdefault((finding.pointer, finding.message), finding)
    # What is missing or too much in an object only because a key of it is misspelt is one mistake with that.
    unknown = {(each.pointer.rpartition("/")[0], each.hint) for each in found.values() if each.code == "unknown-key"}
    echoes = {(object, _MISSING.format(hint[len("did you mean ") : -1])) for object, hint in unknown}
    spoiled = {object for object, _ in unknown}
    return [
        finding
        for place, finding in found.items()
        if place not in echoes and not (finding.code == "bad-combination" and finding.pointer in spoiled)
    ]


def nearest(word: str, known: Any) -> str:
    """Guess the known word that was meant; return nothing where none is like it."""
    names = [name for name in known if isinstance(name, str)]
    folded = {name.lower().replace("-", "_"): name for name in names}
    close = get_close_matches(word.lower().replace("-", "_"), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else ""


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
        # the validator, with an error for each missing key, names it only in its message
        key = next(key for key in error.validator_value if error.message.startswith(repr(key)))
        rule = properties(error.schema).get(key)
        if not rule:  # required by a branch of the schema that doesn't describe it
            rule = properties(properties("plan").get(pointer.removeprefix("/"), {})).get(key, {})
        example = show(rule["examples"][0], 200) if rule.get("examples") else "..."
        what = str(rule.get("description", "")).partition(";")[0]
        hint = f'add "{key}": {example}' + (f", {what}" if what else "")
        yield source.find("missing-key", pointer, _MISSING.format(show(key)), hint)
    else:
        code, message = _described(keyword, error)
        yield source.find(code, pointer, message, _hint(keyword, error))


def _hint(keyword: str, error: ValidationError) -> str:
    """Say what to write, from the schema's own words."""
    rule, choices = error.schema, [error.validator_value] if keyword == "const" else error.validator_value
    if keyword == "uniqueItems":
        return "name each once"
    if keyword in ("enum", "const"):
        if isinstance(error.instance, str) and (near := nearest(error.instance, choices)):
            return f"did you mean {show(near)}?"
        return str(rule.get("errorMessage") or f"choose {series([show(choice) for choice in choices], 'or')}")
    if "errorMessage" in rule:
        return str(rule["errorMessage"])
    what = re.split("[;:,]", str(rule.get("description", "")))[0]
    example = f"e.g. {show(rule['examples'][0])}" if rule.get("examples") else ""
    return ", ".join(part for part in (f"give {what}" if what else "", example) if part)


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
            return (
                ("out-of-range", f"{shown} has {side} than {limit} {what}") if value else ("empty", f"{shown} is empty")
            )
        case "maxProperties":
            return "bad-combination", f"{series(list(value), 'and')} cannot be given together"
        case "pattern":
            return "bad-form", f"{shown} is not of the expected form"
        case "uniqueItems":
            return "repeated-value", f"{shown} names the same thing twice"
        case "not":
            return "bad-combination", f"{shown} does not belong here: {error.schema.get('description', '')}"
    return "bad-value", f"{shown} breaks the rule {keyword} {show(limit)}"
