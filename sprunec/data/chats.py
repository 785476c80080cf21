"""Chats to fine-tune on, written out by the template that comes with a model's tokenizer; replies are asked for.

`transformers` runs the template in a sandbox, as it does when the model is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sprunec.data.fast_tokenizer import (
    CHAT_TEMPLATE,
    FastTokenizer,
    beside_tokenizer,
    read_fast_tokenizer,
    template_files,
)
from sprunec.data.text import bad_line, json_lines
from sprunec.durable import read_file
from sprunec.errors import InputError

REPLY = "assistant"
EXAMPLE = {"messages": [{"role": "user", "content": "..."}, {"role": REPLY, "content": "..."}]}


class Chat(NamedTuple):
    """Messages up to the last reply, and the line that they are from."""

    messages: list[dict[str, Any]]
    path: Path
    line: int

    def wrong(self, why: str) -> InputError:
        return bad_line(self.path, self.line, why, EXAMPLE)


def read_chats(paths: Sequence[Path]) -> Iterator[Chat]:
    """Read chats from JSON-lines files: `messages`, or an `input` and a `target`, which are a question and its reply.

    Raises:
        InputError: a line is neither, or nobody replies in it.
    """
    for path in paths:
        for number, record in json_lines(path, EXAMPLE):
            yield _chat(Chat([], path, number), record)


def _chat(chat: Chat, record: Any) -> Chat:
    messages = record.get("messages") if isinstance(record, dict) else None
    if messages is None and isinstance(record, dict) and {"input", "target"} <= record.keys():
        messages = [{"role": "user", "content": record["input"]}, {"role": REPLY, "content": record["target"]}]
    if not isinstance(messages, list):
        raise chat.wrong("has neither a list of `messages` nor an `input` and a `target`")
    for place, message in enumerate(messages, start=1):
        for key in ("role", "content"):
            if not isinstance(message, dict) or not isinstance(message.get(key), str):
                raise chat.wrong(f"has no `{key}` string in message {place}")
    replies = [place for place, message in enumerate(messages) if message["role"] == REPLY]
    if not replies:
        raise chat.wrong(f"has no message of the role {REPLY}")
    return chat._replace(messages=messages[: replies[-1] + 1])


@dataclass(frozen=True)
class ChatTemplate:
    """The template that comes with a tokenizer.json.

    Attributes:
        text: in Jinja's language.
        tokens: the special tokens that it may name.
    """

    path: Path
    text: str
    tokens: dict[str, str]

    @cached_property
    def _writer(self) -> Any:
        from tokenizers import Tokenizer
        from transformers import PreTrainedTokenizerFast

        own = Tokenizer.from_str(read_fast_tokenizer(self.path).document)
        return PreTrainedTokenizerFast(tokenizer_object=own, **self.tokens)

    def _written(self, chat: Chat, messages: int, *, asks: bool) -> str:
        """Write out the first messages; `asks`: and what stands in front of a reply."""
        given = chat.messages[:messages]
        try:
            said: str = self._writer.apply_chat_template(
                given, chat_template=self.text, tokenize=False, add_generation_prompt=asks
            )
        except Exception as error:  # whatever a template raises
            raise chat.wrong(f"is refused by the chat template: {' '.join(str(error).split())}") from error
        return said

    def encode(self, chat: Chat, tokenizer: FastTokenizer) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Turn a chat into (tokens,) ids, and mark those that begin in a reply, or in what ends it.

        Raises:
            InputError: what stands in front of a reply is written otherwise where that follows.
        """
        whole = self._written(chat, len(chat.messages), asks=False)
        ids, places = tokenizer.encode_places(whole)
        asked = np.zeros(ids.size, dtype=np.bool_)
        for number, message in enumerate(chat.messages):
            if message["role"] == REPLY:
                before, after = (self._written(chat, number + end, asks=not end) for end in (0, 1))
                if not (after.startswith(before) and whole.startswith(after)):
                    why = f"comes out of the chat template with another beginning once message {number + 1} is known"
                    raise chat.wrong(f"{why}, so that the reply cannot be told from the rest")
                asked |= (places >= len(before)) & (places < len(after))
        return ids, asked


def read_chat_template(path: Path) -> ChatTemplate:
    """Read the template beside a tokenizer.json: in a file of its own, else in tokenizer_config.json.

    Raises:
        InputError: there is none, or a package is not installed.
    """
    try:
        import jinja2  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        message, hint = f"a chat template needs the package {error.name}", "pip install 'sprunec[hf]' jinja2"
        raise InputError.in_option("/data/template", message, hint, "missing-package") from error
    about = beside_tokenizer(path)
    text = next(map(read_file, template_files(path)), about.get("chat_template"))
    if isinstance(text, list):  # of several, by their names
        text = next((each.get("template") for each in text if each.get("name") == "default"), None)
    if not isinstance(text, str):
        message = f"neither {CHAT_TEMPLATE} nor tokenizer_config.json beside {path} has a chat template"
        raise InputError.in_option("/data/template", message, "give the tokenizer of a model that chats")
    tokens = {key: value.get("content") if isinstance(value, dict) else value for key, value in about.items()}
    named = {key: value for key, value in tokens.items() if key.endswith("_token") and isinstance(value, str)}
    return ChatTemplate(path, text, named)
