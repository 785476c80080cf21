"""The schemas in `schemas/`: the only home of option rules and defaults.

load_schema("passes/emit")   one schema as it stands in its file
validator("plan")            a Draft 2020-12 validator that knows all the others
bundled("plan")              one with all that it refers to in it
resolve("training", {...})   options with defaults filled in and numbers in their schema's type
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from sprunec.registry import added, added_schemas

_BASE = "https://sprunec.invalid/schemas/"
_ENDING = ".schema.json"
Schema = dict[str, Any]


@cache
def schema_folder() -> Path:
    """Find `sprunec/schemas` in an installed wheel, `schemas` beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside, beside = package / "schemas", package.parent / "schemas"
    return inside if (inside / f"plan{_ENDING}").is_file() else beside


def load_schema(name: str) -> Schema:
    """Read `plan`, `training`, `passes/train-mask`, … as they stand in their files."""
    schema: Schema = json.loads((schema_folder() / f"{name}{_ENDING}").read_text(encoding="utf-8"))
    return schema


def schema_names() -> tuple[str, ...]:
    """Name all schemas, those that other packages bring with their passes, too."""
    return tuple(sorted(uri.removeprefix(_BASE).removesuffix(_ENDING) for uri in _registry()))


def bundled(name: str) -> Schema:
    """Give a schema that needs no other file: what it refers to stands in its `$defs`, by name.

    Raises:
        KeyError: there is no such schema.
    """
    found, wanted, there = dict[str, Schema](), [name], dict[str, Schema]()
    while wanted:
        each = wanted.pop()
        if each not in there:
            there[each] = _registry()[_uri(each)].contents
            found[each] = _inside(there[each], each, name, wanted)
    whole = found.pop(name)
    definitions = whole.get("$defs", {}) | found
    return whole | ({"$defs": definitions} if definitions else {})


def _inside(node: Any, name: str, root: str, wanted: list[str]) -> Any:
    """Point the references of a schema into `$defs` of the one that it is bundled in; note which those are."""
    if isinstance(node, list):
        return [_inside(item, name, root, wanted) for item in node]
    if not isinstance(node, dict):
        return node
    made = {key: _inside(value, name, root, wanted) for key, value in node.items()}
    if isinstance(reference := node.get("$ref"), str):
        uri, _, place = reference.partition("#")
        other = uri.removeprefix(_BASE).removesuffix(_ENDING)
        wanted.append(other)
        made["$ref"] = f"#{place}" if other == root else f"#/$defs/{other.replace('/', '~1')}{place}"
    return made


def validator(name: str) -> Any:
    return _VALIDATOR(_registry()[_uri(name)].contents, registry=_registry())


@cache
def pass_names() -> tuple[str, ...]:
    names: list[str] = properties(properties("plan")["passes"]["items"])["pass"]["enum"]
    return tuple(names)


def properties(schema: str | Schema) -> dict[str, Schema]:
    """Collect all keys that a schema offers, those behind its references too."""
    found = _follow(_registry()[_uri(schema)].contents if isinstance(schema, str) else schema)
    keys = {key: _follow(rule) for key, rule in found.get("properties", {}).items()}
    for part in found.get("allOf", ()):
        keys |= properties(part)
    return keys


def resolve(schema: str | Schema, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in the schema's defaults; order what is `given` as the schema does, with its types: 1 and 1.0 are one."""
    resolved: dict[str, Any] = {}
    for key, rule in properties(schema).items():
        value, kinds = given.get(key), rule.get("type", ())
        if key in given and isinstance(value, dict) and "properties" in rule:
            resolved[key] = resolve(rule, value)
        elif key in given and isinstance(value, int | float) and not isinstance(value, bool):
            whole = "number" not in kinds and "integer" in kinds and float(value).is_integer()
            resolved[key] = int(value) if whole else float(value) if "number" in kinds else value
        elif key in given or "default" in rule:
            resolved[key] = given.get(key, rule.get("default"))
    return resolved


def _follow(rule: Schema) -> Schema:
    if "$ref" not in rule:
        return rule
    contents: Schema = _registry().resolver().lookup(rule["$ref"]).contents
    return contents


@cache
def _registry() -> Registry[Schema]:
    folder = schema_folder()
    names = [path.relative_to(folder).as_posix()[: -len(_ENDING)] for path in folder.rglob(f"*{_ENDING}")]
    schemas = {name: load_schema(name) for name in sorted(names)}
    for name, path in added_schemas("sprunec.passes").items():
        schemas[f"passes/{name}"] = json.loads(path.read_text(encoding="utf-8"))
        written = {"required": ["pass"], "properties": {"pass": {"const": name}}}
        rule = {"if": written, "then": {"$ref": f"passes/{name}{_ENDING}"}}
        schemas["plan"]["properties"]["passes"]["items"]["allOf"].append(rule)
    pairs = [(_uri(name), _absolute(schema, _uri(name))) for name, schema in schemas.items()]
    resources = [(uri, DRAFT202012.create_resource(contents)) for uri, contents in pairs]
    return Registry().with_resources(resources).crawl()


def _uri(name: str) -> str:
    return f"{_BASE}{name}{_ENDING}"


def _absolute(node: Any, uri: str) -> Any:
    """Make references absolute, so that a part still finds what it refers to; add names from other packages."""
    if isinstance(node, list):
        return [_absolute(item, uri) for item in node]
    if not isinstance(node, dict):
        return node
    if "entryPoints" in node:
        node["enum"] += added(node["entryPoints"])
    return {
        key: urljoin(uri, value) if key == "$ref" and isinstance(value, str) else _absolute(value, uri)
        for key, value in node.items()
    }


def _pattern(_: Any, pattern: str, value: Any, __: Schema) -> Iterator[ValidationError]:
    """Match as ECMAScript does, where `$` is the very end; Python's also stands before a last newline."""
    if isinstance(value, str) and not re.search(re.sub(r"\$$", r"\\Z", pattern), value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


_VALIDATOR = extend(Draft202012Validator, {"pattern": _pattern})
