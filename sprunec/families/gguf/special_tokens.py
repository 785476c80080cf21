"""What a directory says of its special tokens and its chat template; needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sprunec.durable import read_file
from sprunec.text_files import read_json

# By GGUF's word for an id, what the files of transformers call the token.
ROLES = {
    "bos": "bos_token",
    "eos": "eos_token",
    "unknown": "unk_token",
    "seperator": "sep_token",  # so spelled in the format
    "padding": "pad_token",
    "mask": "mask_token",
}
ENDS_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>")  # the first of them that there is
TEMPLATE, TEMPLATES = "tokenizer.chat_template", "tokenizer.chat_templates"


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object, if there is such a file; raises InputError where it is something else."""
    found = read_json(path, f"a {path.name}", "give the one of the model, or none") if path.is_file() else {}
    return found if isinstance(found, dict) else {}


def special_ids(directory: Path, config: Mapping[str, Any], rows: Mapping[str, int]) -> dict[str, int]:
    """Give the ids of special tokens by GGUF's words for them.

    Args:
        config: what tokenizer_config.json says.
        rows: of tokens, by text.
    """
    named = read_object(directory / "special_tokens_map.json") | dict(config)
    found = {role: text(named.get(key)) for role, key in ROLES.items()}
    ids = {role: rows[token] for role, token in found.items() if token is not None and token in rows}
    models = read_object(directory / "config.json") | read_object(directory / "generation_config.json")
    for role in ("bos", "eos"):
        given = models.get(f"{role}_token_id")
        first = given[0] if isinstance(given, list) and given else given
        if role not in ids and isinstance(first, int) and first in rows.values():
            ids[role] = first
    turn = next((rows[token] for token in ENDS_OF_TURN if token in rows), None)
    return ids | ({"eot": turn} if turn is not None else {})


def text(token: Any) -> str | None:
    """Give a token's text, which may stand alone or in an object."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def framed(document: Mapping[str, Any], config: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, bool]:
    """Tell whether the tokens that begin and end a text are added to it: by what settings say, else by the template."""
    single = list(_template(document.get("post_processor")))
    found = {}
    for role, at in (("bos", 0), ("eos", -1)):
        asked = config.get(f"add_{role}_token")
        token = text(config.get(f"{role}_token"))
        there = len(single) > 1 and token is not None and single[at] == token
        found[role] = role in ids and (bool(asked) if asked is not None else there)
    return found


def _template(processor: Mapping[str, Any] | None) -> Iterator[str]:
    """List the tokens of what is made of one text; "" for the text itself."""
    if processor is None:
        return
    for each in processor.get("processors", [processor]):
        for piece in each.get("single", ()) if each.get("type") == "TemplateProcessing" else ():
            yield (piece.get("SpecialToken") or {}).get("id", "")


def chat_templates(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Read the chat templates by their names; "default" is the one that is used."""
    own, given = directory / "chat_template.jinja", config.get("chat_template")
    found = {}
    if isinstance(given, list):
        found = {str(each["name"]): str(each["template"]) for each in given if isinstance(each, dict)}
    elif isinstance(given, str):
        found = {"default": given}
    return found | ({"default": read_file(own)} if own.is_file() else {})
