"""Read the model config that a plan names, in a directory, a file or inline, and check that it is a model's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sprunec.checkpoint.layouts import BIN, CONFIG, WEIGHTS, has_weights
from sprunec.errors import Diagnostic, InputError, show
from sprunec.families.base_config import ModelConfig
from sprunec.families.cards import card
from sprunec.families.detect import TODAY, config_family, is_huggingface
from sprunec.file_kinds import foreign
from sprunec.plan.json_reader import escape
from sprunec.plan.resolve import Draft
from sprunec.plan.schema import properties
from sprunec.plan.schema_errors import schema_findings
from sprunec.plan.source import Source, read_source

WANTED, HINT = "a model config", "give the config.json that belongs to the weights"
PATH_PLACE, CONFIG_PLACE, CHECKPOINT_PLACE = "/model/path", "/model/config", "/model/checkpoint"
Found = tuple[ModelConfig | None, list[Diagnostic]]


def open_directory(source: Source, draft: Draft) -> tuple[Source, list[Diagnostic]]:
    """Put `config` and `checkpoint` as files in the place of a directory, and tell what is wrong with that.

    What is found later about these files is told where the plan names the directory.
    """
    model = source.value.get("model")
    place = PATH_PLACE if isinstance(model, dict) and "path" in model else CONFIG_PLACE
    written = model.get(place.rpartition("/")[2]) if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(written, str) or not draft.sound("/model"):
        return source, []
    directory = draft.folder / written
    if not os.path.isdir(directory):
        return source, [_no_directory(source, directory)] if place == PATH_PLACE else []
    if not os.path.isfile(directory / CONFIG):
        hint = "name the directory that has one, or the file itself"
        return source, [source.find("missing-file", place, f"the directory {directory} has no {CONFIG}", hint)]
    named, found = {"config": os.path.join(written, CONFIG)}, []
    if place == PATH_PLACE or ("checkpoint" not in model and has_weights(directory)):
        named["checkpoint"] = written
    elif "checkpoint" not in model:
        message = f"the directory {directory} has no weights: the model is a new one"
        found = [source.warn("new-model", place, message, f"put {WEIGHTS} or {BIN} into it, or name a checkpoint")]
    rest = {key: value for key, value in model.items() if key != "path"}
    origins = {**source.origins, **{f"/model/{key}": (source, place) for key in named}}
    return replace(source, value=source.value | {"model": rest | named}, origins=origins), found


def _no_directory(source: Source, directory: Path) -> Diagnostic:
    if os.path.exists(directory):
        message, hint = f"{directory} is no directory", "name the config as config and the weights as checkpoint"
        return source.find("not-a-folder", PATH_PLACE, message, hint)
    return source.find("missing-file", PATH_PLACE, f"there is no directory {directory}", "check the path")


def path_as_config(source: Source) -> Source:
    """Move the model's `path` to `config`, beside which flags can put another checkpoint."""
    model = source.value.get("model")
    if not isinstance(model, dict) or "path" not in model or "config" in model:
        return source
    moved = {"config" if key == "path" else key: value for key, value in model.items()}
    places, keys = (
        {CONFIG_PLACE if pointer == PATH_PLACE else pointer: place for pointer, place in marks.items()}
        for marks in (source.places, source.keys)
    )
    return replace(source, value=source.value | {"model": moved}, places=places, keys=keys)


def model_config(draft: Draft, *, incomplete: bool = False) -> Found:
    """Read the plan's model, with what is wrong about it; a config that isn't there is an error.

    Args:
        incomplete: unless nobody has named it; sizes are then not checked.
    """
    section = draft.source.value.get("model")
    written = section.get("config") if isinstance(section, dict) else None
    if isinstance(written, dict) and (stranger := _foreign_family(draft.source, CONFIG_PLACE, written)):
        return None, [stranger]
    if not draft.sound(CONFIG_PLACE) or not draft.sound(PATH_PLACE) or not isinstance(written, str | dict):
        return None, []
    if isinstance(written, dict):
        return _finish(draft.source, CONFIG_PLACE, written, [])  # the plan's schema has looked at it already
    path = str(draft.folder / written)
    if os.path.exists(path):
        return read_config(path)
    message = f"there is no model config {path}"
    if incomplete and CONFIG_PLACE in draft.source.assumed:
        hint = "give it with --model-config; without it sizes are not checked"
        return None, [draft.source.warn("missing-file", CONFIG_PLACE, message, hint)]
    return None, [draft.source.find("missing-file", CONFIG_PLACE, message, draft.paths_start)]


def read_config(path: str) -> Found:
    """Read a config file, Hugging Face's too; warn of keys beyond ours, since CPM-Live's own files carry some."""
    try:
        source = read_source(path, WANTED, HINT)
    except InputError as error:
        return None, list(error.diagnostics)
    if told := foreign(Path(path), WANTED, {"text", "config", "json"}, {"": HINT}):
        return None, list(told.diagnostics)
    if stranger := _foreign_family(source, "", source.value):
        return None, [stranger]
    if is_huggingface(source.value):
        source = replace(source, value=card().native_keys(source.value))
    found = [_excused(source, finding) for finding in schema_findings(source, "model")]
    return _finish(source, "", source.value, [*source.problems, *(each for each in found if each is not None)])


def _foreign_family(source: Source, prefix: str, value: Mapping[str, Any]) -> Diagnostic | None:
    """Refuse a config of another family by name; keys that nobody knows are none."""
    if is_huggingface(value):
        try:
            card().native_keys(value)
        except ValueError as error:
            hint = f'{TODAY}, whose Hugging Face configs have "model_type": "{card().model_type}"'
            return source.find("foreign-config", f"{prefix}/model_type", str(error), hint)
        return None
    if (found := config_family(value)) is None:
        return None
    name, key = found
    has = f"it has {key}" if isinstance(value[key], dict | list) else f"its {key} is {show(value[key])}"
    return source.find("foreign-config", f"{prefix}/{escape(key)}", f"this is {name}'s config: {has}", TODAY, key=True)


def _excused(source: Source, finding: Diagnostic) -> Diagnostic | None:
    """Warn of unknown keys, which are ignored; pass an older file's as long as they describe this family."""
    key = finding.pointer[1:]
    if finding.code != "unknown-key" or "/" in key:
        return finding
    if (contradiction := card().older_key(key, source.value.get(key))) is not None:
        other = replace(finding, code="foreign-config", message=contradiction, hint="this is another model")
        return other if contradiction else None
    hint = finding.hint if finding.hint.startswith("did you mean") else "it is ignored"
    return replace(finding, severity="warning", hint=hint)


def _finish(source: Source, prefix: str, value: dict[str, Any], found: list[Diagnostic]) -> Found:
    if not any(finding.severity == "error" for finding in found):
        defaults = {key: rule.get("default") for key, rule in properties("model").items()}
        found = [*found, *(source.locate(each, prefix) for each in card().config_findings(value, defaults))]
    if any(finding.severity == "error" for finding in found):
        return None, found
    return card().config(_whole_numbers(value)), found


def _whole_numbers(value: Any) -> Any:
    """Make 4.0 heads 4: JSON has one kind of number."""
    if isinstance(value, dict):
        return {key: item if key in ("eps", "norm_eps") else _whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
