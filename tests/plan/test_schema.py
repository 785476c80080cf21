"""The schemas are whole: described, with defaults that they allow themselves, and one with the model's code."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from sprunec.families.cpm_ant.config import CPM_LIVE_DEFAULTS, FAMILY
from sprunec.plan.schema import bundled, load_schema, pass_names, properties, resolve, schema_names, validator
from tests.helpers.small_plans import EMIT, TRAIN, plan

NAMES = schema_names()


def rules(node: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every option of a schema, at any depth; a branch of a condition only points at options."""
    if not isinstance(node, dict):
        return
    for key, rule in node.get("properties", {}).items():
        yield f"{place}/{key}", rule
        yield from rules(rule, f"{place}/{key}")
    for key, rule in node.get("$defs", {}).items():
        yield from rules(rule, f"{place}#{key}")
    for part in (node.get("items"), node.get("additionalProperties"), *node.get("anyOf", ()), *node.get("oneOf", ())):
        yield from rules(part, f"{place}/*")


def says_its_values(rule: dict[str, Any]) -> bool:
    """Tell whether an editor knows what may be written: by examples, a list, or what is inside or referred to."""
    if any(key in rule for key in ("examples", "enum", "const", "$ref", "not")) or rule.get("type") == "boolean":
        return True
    parts = (rule.get("items"), rule.get("additionalProperties"), *rule.get("anyOf", ()), *rule.get("oneOf", ()))
    inner = [part for part in parts if isinstance(part, dict) and part.get("type") != "null"]
    return bool(rule.get("properties")) or any(map(says_its_values, inner))


@pytest.mark.parametrize("name", NAMES)
def test_schema_is_valid(name: str) -> None:
    Draft202012Validator.check_schema(load_schema(name))
    assert load_schema(name)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_described(name: str) -> None:
    assert [place for place, rule in rules(load_schema(name)) if not rule.get("description")] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_option_has_a_title_and_says_its_values(name: str) -> None:
    found = [(place, rule) for place, rule in rules(load_schema(name)) if "not" not in rule]
    assert [place for place, rule in found if not rule.get("title")] == []
    assert [place for place, rule in found if not says_its_values(rule)] == []


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_of_the_kind_that_they_explain(name: str) -> None:
    for place, rule in rules(load_schema(name)):
        kinds = Draft202012Validator({"type": rule["type"]} if "type" in rule else {})
        assert all(kinds.is_valid(example) for example in rule.get("examples", ())), place


@pytest.mark.parametrize("name", NAMES)
def test_a_bundled_schema_stands_alone(name: str) -> None:
    schema = bundled(name)
    Draft202012Validator.check_schema(schema)
    for reference in re.findall(r'"\$ref": "([^"]*)"', json.dumps(schema)):
        node: Any = schema
        for part in reference.removeprefix("#").split("/")[1:]:
            node = node[part.replace("~1", "/")]
        assert isinstance(node, dict), reference


def test_a_bundled_schema_says_what_the_files_say() -> None:
    alone = Draft202012Validator(bundled("plan"))
    for change, valid in (({}, True), ({"stepz": 1}, False), ({"learning_rate": 0}, False), ({"steps": "2"}, False)):
        content = plan(TRAIN | change, EMIT)
        assert alone.is_valid(content) == validator("plan").is_valid(content) == valid


@pytest.mark.parametrize("name", ["plan", "model", *(f"passes/{name}" for name in pass_names())])
def test_defaults_and_examples_are_allowed(name: str) -> None:
    for key, rule in properties(name).items():
        check = validator("plan").evolve(schema=rule)
        for value in [*rule.get("examples", []), *([rule["default"]] if "default" in rule else [])]:
            assert [error.message for error in check.iter_errors(value)] == [], key


def test_every_pass_has_a_schema_and_a_branch() -> None:
    branches = load_schema("plan")["properties"]["passes"]["items"]["allOf"]
    assert [branch["if"]["properties"]["pass"]["const"] for branch in branches] == list(pass_names())
    assert [branch["then"]["$ref"] for branch in branches] == [f"passes/{name}.schema.json" for name in pass_names()]


def test_model_defaults_are_the_codes() -> None:
    rules_ = properties("model")
    assert {key: rules_[key]["default"] for key in CPM_LIVE_DEFAULTS} == CPM_LIVE_DEFAULTS
    assert rules_["family"]["default"] == FAMILY


def test_training_options_are_offered_by_every_training_pass() -> None:
    shared = set(properties("training"))
    for name in ("train", "finetune", "train-mask"):
        assert shared <= set(properties(f"passes/{name}"))
    assert shared.isdisjoint(properties("passes/score-mask"))


def test_resolve_fills_in_defaults() -> None:
    assert resolve("training", {"schedule": "noam", "clip_grad": None, "accumulate": 2.0}) == {
        "optimizer": "adamw",
        "betas": [0.9, 0.999],
        "learning_rate": 0.01,
        "schedule": "noam",
        "warmup_steps": None,
        "weight_decay": 0.01,
        "clip_grad": None,
        "accumulate": 2,
        "checkpoint_every": 200,
        "loss_scale": 65536.0,
        "distillation": None,
        "adapter": None,
        "freeze": [],
    }


def test_dollar_is_the_very_end() -> None:
    document = {"name": "a\n", "model": {"config": {}}, "passes": [{"pass": "emit"}]}
    assert [error.json_path for error in validator("plan").iter_errors(document)] == ["$.name"]
