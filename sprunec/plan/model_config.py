"""Read the model config that a plan names, in a directory, a file or inline, and check that it is a model's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sprunec.checkpoint.gguf_file import is_gguf
from sprunec.checkpoint.hub import MAIN, find_snapshot, hub_cache, is_hub_name, is_whole
from sprunec.checkpoint.layouts import BIN, CONFIG, WEIGHTS, has_weights
from sprunec.errors import Diagnostic, InputError, show
from sprunec.families.base_config import ModelConfig
from sprunec.families.cards import DEFAULT, card, native
from sprunec.families.detect import TODAY, config_family, is_huggingface
from sprunec.families.gguf.gguf_config import config_document
from sprunec.families.own_code import FLAG, adopt, brings_code, is_trusted
from sprunec.file_kinds import foreign
from sprunec.plan.json_reader import escape
from sprunec.plan.schema import properties
from sprunec.plan.schema_errors import schema_findings
from sprunec.plan.source import Section, Source, has_errors, read_source
from sprunec.plan.written_plan import WrittenPlan

WANTED, HINT = "a model config", "give the config.json that belongs to the weights"
Fetch = Callable[[str, str], Path]  # a model's name and revision to its directory; raises InputError


def open_directory(plan: WrittenPlan, *, incomplete: bool = False, fetch: Fetch | None = None) -> Source:
    """Put `config` and `checkpoint` as files in the place of a directory, and tell what is wrong with that.

    What is found later about these files is told where the plan names the directory.

    Args:
        incomplete: a model of the hub that the cache lacks is but a warning.
        fetch: gets such a model.
    """
    model, source = plan.section("model"), plan.source
    key = "path" if "path" in model.written else "config"
    written = model.written.get(key)
    if not isinstance(written, str) or not plan.is_valid("/model"):
        return source
    directory, weights = source.folder / written, written
    if is_hub_name(written) and not os.path.exists(directory):
        if (found := _snapshot(model, key, incomplete=incomplete, fetch=fetch)) is None:
            return source
        directory, written = found, str(found)
        weights = written if is_whole(found) else os.path.join(written, WEIGHTS)  # a file that is not there yet
    elif "revision" in model.written and os.path.isdir(directory):
        model.unused("revision", "revision is of a model of the hub, and this one is on the disk")
    named = {"config": os.path.join(written, CONFIG)}
    if is_gguf(directory):
        named = {"config": written} if "checkpoint" in model.written else {"config": written, "checkpoint": written}
    elif not os.path.isdir(directory):
        if key == "path" and os.path.exists(directory):
            hint = "name the config as config and the weights as checkpoint"
            model.error("not-a-folder", key, f"{directory} is no directory, and no GGUF file", hint)
        elif key == "path":
            hint = "check the path; a model of the hub is named ORGANIZATION/NAME"
            model.error("missing-file", key, f"there is no directory {directory}", hint)
        return source
    elif not os.path.isfile(directory / CONFIG):
        hint = "name the directory that has one, or the file itself"
        model.error("missing-file", key, f"the directory {directory} has no {CONFIG}", hint)
        return source
    elif key == "path" or ("checkpoint" not in model.written and has_weights(directory)):
        named["checkpoint"] = weights
    elif "checkpoint" not in model.written:
        message = f"the directory {directory} has no weights: the model is a new one"
        model.warn("new-model", key, message, f"put {WEIGHTS} or {BIN} into it, or name a checkpoint")
    rest = {name: value for name, value in model.written.items() if name not in ("path", "revision")}
    origins = {**source.origins, **{f"/model/{name}": (source, model.at(key)) for name in named}}
    return replace(source, value=source.value | {"model": rest | named}, origins=origins)


def _snapshot(model: Section, key: str, *, incomplete: bool, fetch: Fetch | None) -> Path | None:
    """Find a model of the hub in its cache, or fetch it; tell where that cannot be done.

    A config may be named so where other weights stand beside it; what is not cached is then a file that is missing.
    """
    name, revision = model.written[key], model.written.get("revision", MAIN)
    if key == "config":
        return find_snapshot(name, revision)
    try:
        found = find_snapshot(name, revision) if fetch is None else fetch(name, revision)
    except InputError as error:
        for told in error.diagnostics:
            model.error(told.code, key, f"{told.place}: {told.message}", told.hint)
        return None
    if found is not None and (found / CONFIG).is_file():
        return found
    of = f" of revision {revision}" if "revision" in model.written else ""
    message = f"{name}{of} is neither a directory here nor a model in {hub_cache()}"
    hint = "check the name; run, without --dry-run, fetches a model of the hub"
    model.error("missing-file", key, message, hint, severity="warning" if incomplete else "error")
    return None


def path_as_config(source: Source) -> Source:
    """Move the model's `path` to `config`, beside which flags can put another checkpoint."""
    model = source.value.get("model")
    if not isinstance(model, dict) or "path" not in model or "config" in model:
        return source
    moved = {"config" if key == "path" else key: value for key, value in model.items()}
    places, keys = (
        {"/model/config" if pointer == "/model/path" else pointer: place for pointer, place in marks.items()}
        for marks in (source.places, source.keys)
    )
    return replace(source, value=source.value | {"model": moved}, places=places, keys=keys)


def model_config(plan: WrittenPlan, *, incomplete: bool = False) -> ModelConfig | None:
    """Read the plan's model; a config that isn't there is an error, unless `incomplete` and nobody has named it."""
    model, found, config = plan.section("model"), list[Diagnostic](), None
    written = model.written.get("config")
    if isinstance(written, dict) and (stranger := _foreign_family(plan.source, "/model/config", written)):
        found = [stranger]
    elif not isinstance(written, str | dict) or not plan.is_valid("/model/config") or not plan.is_valid("/model/path"):
        pass
    elif isinstance(written, dict):  # the plan's schema has looked at it already
        config = _checked(Section(plan.source, found, "/model/config"))
    elif os.path.exists(path := plan.source.folder / written):
        config, found = read_config(str(path))
    elif incomplete and "/model/config" in plan.source.assumed:
        hint = "give it with --model-config; without it sizes are not checked"
        model.warn("missing-file", "config", f"there is no model config {path}", hint)
    else:
        model.error("missing-file", "config", f"there is no model config {path}", plan.paths_start)
    plan.found += found
    return config


def read_config(path: str) -> tuple[ModelConfig | None, list[Diagnostic]]:
    """Read a config file, Hugging Face's too; warn of keys beyond ours, since CPM-Live's own files carry some."""
    try:
        if gguf := is_gguf(Path(path)):
            source = Source(path, config_document(Path(path)))
        else:
            source = read_source(path, WANTED, HINT)
    except InputError as error:
        return None, list(error.diagnostics)
    except OSError as error:
        return None, list(InputError.of_disk(path, error).diagnostics)
    if not gguf and (told := foreign(Path(path), WANTED, {"text", "config", "json"}, {"": HINT})):
        return None, list(told.diagnostics)
    found = list(source.problems)
    try:
        found += _own_code(source)
    except InputError as error:
        return None, list(error.diagnostics)
    if stranger := _foreign_family(source, "", source.value):
        return None, [stranger]
    if is_huggingface(source.value):
        # What is not used is not carried along: it would name files that are not there.
        unused = () if is_trusted() else ("auto_map",)
        value = {key: given for key, given in source.value.items() if key not in unused}
        source = replace(source, value=native(value))
    about = card(source.value.get("family", DEFAULT))
    for finding in schema_findings(source, about.schema) if about.schema else ():
        key = finding.pointer[1:]
        if finding.code != "unknown-key" or "/" in key:
            found.append(finding)
        elif (contradiction := about.older_key(key, source.value.get(key))) is None:
            hint = finding.hint if finding.hint.startswith("did you mean") else "it is ignored"
            found.append(replace(finding, severity="warning", hint=hint))
        elif contradiction:  # a key of CPM-Live's older files, which are read as long as they describe this family
            hint = "this is another model"
            found.append(replace(finding, code="foreign-config", message=contradiction, hint=hint))
    return _checked(Section(source, found)), found


def teacher_config(path: Path | None, config: ModelConfig) -> ModelConfig:
    """Read the config of a teacher that has one; else it is the plan's model's.

    Raises:
        InputError: it cannot be read.
    """
    own = None if path is None else path if is_gguf(path) else path / CONFIG
    if own is None or not os.path.isfile(own):
        return config
    found, findings = read_config(str(own))
    if found is None or has_errors(findings):
        raise InputError(*(each for each in findings if each.severity == "error"))
    return found


def _own_code(source: Source) -> Iterator[Diagnostic]:
    """Take the classes that a config brings where they are trusted; else the library's, if it has such a family.

    Raises:
        InputError: it has none, or these cannot be used.
    """
    if not brings_code(source.value):
        return
    try:
        known = card(native(source.value)["family"])
    except ValueError:
        known = None
    if known is not None and known.own_code:
        return  # what it brings is written by us
    if is_trusted():
        adopt(Path(source.file).parent, source.value)
    elif known is None:
        message = "the model's classes are Python files in its directory, which are not run unless you say so"
        hint = f"read them, and give {FLAG}, which runs them as you"
        raise InputError(source.find("remote-code", "/auto_map", message, hint, key=True))
    else:
        message = "the model brings classes of its own; those of transformers are used instead"
        yield source.find("stock-class", "/auto_map", message, f"{FLAG} runs its own", severity="warning", key=True)


def _foreign_family(source: Source, prefix: str, value: Mapping[str, Any]) -> Diagnostic | None:
    """Refuse a config of another family by name; keys that nobody knows are none."""
    if is_huggingface(value):
        try:
            native(value)
        except ValueError as error:
            return source.find("foreign-config", f"{prefix}/model_type", str(error), TODAY)
        return None
    if (found := config_family(value)) is None:
        return None
    name, key = found
    has = f"it has {key}" if isinstance(value[key], dict | list) else f"its {key} is {show(value[key])}"
    return source.find("foreign-config", f"{prefix}/{escape(key)}", f"this is {name}'s config: {has}", TODAY, key=True)


def _checked(section: Section) -> ModelConfig | None:
    """Make the config where nothing that is found in it is an error, neither so far nor beyond its schema."""
    if has_errors(section.found):
        return None
    about = card(section.written.get("family", DEFAULT))
    rules = properties(about.schema) if about.schema else {}
    for finding in about.config_findings(section.written, {key: rule.get("default") for key, rule in rules.items()}):
        section.locate(finding)
    if has_errors(section.found):
        return None
    return about.config(_whole_numbers(section.written) if about.schema else section.written)


def _whole_numbers(value: Any) -> Any:
    """Make 4.0 heads 4: JSON has one kind of number."""
    if isinstance(value, dict):
        return {key: item if key in ("eps", "norm_eps") else _whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
