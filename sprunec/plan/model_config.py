"""Read the model config of a plan, from its own file or inline, and check that it describes a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sprunec.errors import Diagnostic, InputError
from sprunec.families.cpm_ant.config import ModelConfig
from sprunec.families.cpm_ant.huggingface_names import STOCK, is_huggingface, native_keys
from sprunec.families.detect import TODAY, config_family
from sprunec.file_kinds import foreign
from sprunec.plan.pointer import escape, show
from sprunec.plan.schema import properties
from sprunec.plan.schema_errors import schema_findings
from sprunec.plan.source import Source, read_source

CONFIG, CONFIG_HINT = "a model config", "give the config.json that belongs to the weights"
# Keys of CPM-Live's older files, with the one value that this family has; None: it says nothing about the model.
_OLDER: Mapping[str, Any] = (
    dict.fromkeys(f"{part}_init_{kind}" for part in ("emb", "pos", "att", "ffn", "proj") for kind in ("mean", "std"))
    | dict.fromkeys(("norm_init_var", "use_cache", "cls_head", "attn_scale"))
    | dict.fromkeys(("norm_bias", "att_bias", "ffn_bias", "proj_bias", "int8", "post_layer_norm"), False)
    | dict.fromkeys(("length_scale", "tied", "absolute_inner_segment"), True)
    | {"pos_bias_type": "relative", "att_mask_value": "-inf", "ffn_activate_fn": "gated_gelu"}
)
_SIZES = ("vocab_size", "dim_model", "num_heads", "dim_head", "dim_ff", "num_layers")


def read_config(path: str) -> tuple[ModelConfig | None, list[Diagnostic]]:
    """A config file, Hugging Face's too; keys beyond ours are warnings, since CPM-Live's own files carry some."""
    try:
        source = read_native(path)
    except InputError as error:
        return None, list(error.diagnostics)
    found = [_excuse(source, finding) for finding in schema_findings(source, "model")]
    found = [finding for finding in found if finding.code != "older-key"]
    return _finish(source, "", source.value, [*source.problems, *found])


def read_native(path: str) -> Source:
    """A config file, in CPM-Live's keys whichever it is written in.

    Raises:
        InputError: it is not JSON, or Hugging Face's config of another family.
    """
    source = read_source(path, CONFIG, CONFIG_HINT)
    told = foreign(Path(path), CONFIG, {"text", "config", "json"}, {"": CONFIG_HINT})
    if told is not None:
        raise told
    stranger = foreign_family(source, "", source.value)
    if stranger is not None:
        raise InputError(stranger)
    return replace(source, value=native_keys(source.value)) if is_huggingface(source.value) else source


def foreign_family(source: Source, prefix: str, value: Mapping[str, Any]) -> Diagnostic | None:
    """A config of another family, refused by name; keys that nobody knows are none."""
    if is_huggingface(value):
        try:
            native_keys(value)
        except ValueError as error:
            hint = f'{TODAY}, whose Hugging Face configs have "model_type": "{STOCK}"'
            return source.find("foreign-config", f"{prefix}/model_type", str(error), hint)
        return None
    found = config_family(value)
    if found is None:
        return None
    name, key = found
    has = f"it has {key}" if isinstance(value[key], dict | list) else f"its {key} is {show(value[key])}"
    return source.find("foreign-config", f"{prefix}/{escape(key)}", f"this is {name}'s config: {has}", TODAY, key=True)


def inline_config(source: Source, prefix: str, value: Any) -> tuple[ModelConfig | None, list[Diagnostic]]:
    """A config inside a plan, which the plan's schema has looked at already."""
    return _finish(source, prefix, value, [])


def _excuse(source: Source, finding: Diagnostic) -> Diagnostic:
    """Unknown keys are ignored with a warning; an older file's are fine, as long as they describe this family."""
    key = finding.pointer[1:]
    if finding.code != "unknown-key" or "/" in key:
        return finding
    if key in _OLDER:
        only, given = _OLDER[key], source.value[key]
        if only is None or given == only:
            return replace(finding, code="older-key")
        return replace(
            finding,
            code="foreign-config",
            message=f"{key} {show(given)}; CPM-Ant has {show(only)}",
            hint="this is another model",
        )
    hint = finding.hint if finding.hint.startswith("did you mean") else "it is ignored"
    return replace(finding, severity="warning", hint=hint)


def _finish(
    source: Source, prefix: str, value: dict[str, Any], found: list[Diagnostic]
) -> tuple[ModelConfig | None, list[Diagnostic]]:
    if not any(finding.severity == "error" for finding in found):
        found = [*found, *_disagreements(source, prefix, value), *_unsaid(source, prefix, value)]
    if any(finding.severity == "error" for finding in found):
        return None, found
    return ModelConfig.from_dict(_whole_numbers(value)), found


def _whole_numbers(value: Any) -> Any:
    """JSON has one kind of number: 4.0 heads are 4."""
    if isinstance(value, dict):
        return {key: item if key in ("eps", "norm_eps") else _whole_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _disagreements(source: Source, prefix: str, value: dict[str, Any]) -> Iterator[Diagnostic]:
    config: dict[str, Any] = {key: value.get(key, rule.get("default")) for key, rule in properties("model").items()}
    yield from _lengths(source, prefix, config)
    yield from _distances(source, prefix, config)
    for index, layer in enumerate(config["layers"] or ()):
        yield from _layer(source, f"{prefix}/layers/{index}", layer, int(config["num_heads"]))
    if config["layers"] and config["mask_modules"]:
        yield from _absent_twice(source, prefix, config)


def _lengths(source: Source, prefix: str, config: dict[str, Any]) -> Iterator[Diagnostic]:
    for key in ("mask_modules", "layers"):
        entries, count = config[key], int(config["num_layers"])
        if entries is not None and len(entries) != count:
            message = f"{key} has {len(entries)} entries for num_layers {count}"
            yield source.find("config-mismatch", f"{prefix}/{key}", message, f"give {count} entries, one per layer")


def _distances(source: Source, prefix: str, config: dict[str, Any]) -> Iterator[Diagnostic]:
    buckets, distance = int(config["position_bias_num_buckets"]), int(config["position_bias_max_distance"])
    if distance <= buckets // 4:
        message = f"{distance} is not above a quarter of the {buckets} buckets"
        pointer = f"{prefix}/position_bias_max_distance"
        yield source.find("config-mismatch", pointer, message, f"give at least {buckets // 4 + 1}")


def _layer(source: Source, pointer: str, layer: dict[str, Any], columns: int) -> Iterator[Diagnostic]:
    heads, kept = layer["heads"], layer.get("kept_heads")
    if (heads is None) != (layer["dim_head"] is None):
        message = f"heads is {show(heads)} and dim_head is {show(layer['dim_head'])}"
        yield source.find("config-mismatch", pointer, message, "give both, or null for both: no attention")
    elif heads is not None and heads > columns:
        message = f"{int(heads)} is above num_heads {columns}, the columns of the position-bias table"
        yield source.find("config-mismatch", f"{pointer}/heads", message, f"give at most {columns}")
    elif kept is not None:
        yield from _kept(source, f"{pointer}/kept_heads", kept, int(heads or 0), columns)


def _kept(source: Source, pointer: str, kept: list[Any], heads: int, columns: int) -> Iterator[Diagnostic]:
    for index, column in enumerate(kept):
        if column >= columns:
            message = f"{int(column)} is not a head of 0 to {columns - 1}"
            yield source.find("config-mismatch", f"{pointer}/{index}", message, "give the head's index in num_heads")
    if len(kept) != heads:
        message = f"kept_heads has {len(kept)} entries for {heads} heads"
        yield source.find("config-mismatch", pointer, message, f"give {heads} entries, one per head")


def _absent_twice(source: Source, prefix: str, config: dict[str, Any]) -> Iterator[Diagnostic]:
    """`mask_modules` says again what `layers` says; where they disagree nobody knows which is meant."""
    for index, (pair, layer) in enumerate(zip(config["mask_modules"], config["layers"], strict=False)):
        absent = [layer["heads"] is None, layer["dim_ff"] is None]
        if pair != absent:
            pointer = f"{prefix}/mask_modules/{index}"
            message = f"{show(pair)} disagrees with layers, by which it is {show(absent)}"
            yield source.find("config-mismatch", pointer, message, "change one of them, or leave out mask_modules")


def _unsaid(source: Source, prefix: str, value: dict[str, Any]) -> Iterator[Diagnostic]:
    """A config in other words (another library's) would else be taken for CPM-Live's largest defaults."""
    rules = properties("model")
    missing = {key: rules[key]["default"] for key in _SIZES if key not in value}
    unknown = [key for key in value if key not in rules]
    if unknown and all(key in missing for key in _SIZES[1:]):
        message = f"the config gives none of {', '.join(_SIZES[1:])}"
        yield source.find("foreign-config", prefix, message, "write it in CPM-Live's keys")
    elif missing:
        sizes = ", ".join(f"{key} {size}" for key, size in missing.items())
        message = f"the config doesn't give {', '.join(missing)}"
        yield source.warn("default-size", prefix, message, f"CPM-Live's defaults are taken: {sizes}")
