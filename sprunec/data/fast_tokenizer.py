"""The tokenizer of a Hugging Face directory, or of a GGUF file: its tokenizer.json, run by the package `tokenizers`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprunec.checkpoint.gguf_file import is_gguf, read_gguf
from sprunec.durable import read_file
from sprunec.errors import InputError
from sprunec.families.gguf.tokenizer_files import INSTEAD, missing
from sprunec.families.gguf.tokenizer_files import tokenizer_files as gguf_files
from sprunec.text_files import read_json

TOKENIZER, CHAT_TEMPLATE = "tokenizer.json", "chat_template.jinja"

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class FastTokenizer:
    """Text to ids and back as the directory's model was trained with, without special tokens.

    Attributes:
        document: the text of tokenizer.json.
        marks: the tokens in front of a text and behind it; None: it has none.
    """

    document: str
    marks: tuple[str | None, str | None] = (None, None)

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_str(self.document)

    @property
    def size(self) -> int:
        count: int = self._tokenizer.get_vocab_size()
        return count

    @property
    def unknown(self) -> int:
        """Give -1, which is no token: pieces of bytes leave nothing unknown."""
        return -1

    @property
    def begin(self) -> int:
        return self._mark(0)

    @property
    def end(self) -> int:
        return self._mark(1)

    def _mark(self, place: int) -> int:
        token = self.marks[place] or self.marks[1]
        number: int | None = None if token is None else self._tokenizer.token_to_id(token)
        if number is None:
            raise InputError.in_option("/data/tokenizer", "the tokenizer has no token that ends a text", "give another")
        return number

    def encode(self, text: str) -> NDArray[np.int32]:
        import numpy as np

        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.array(ids, dtype=np.int32)

    def encode_all(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        import numpy as np

        return [np.array(each.ids, np.int32) for each in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def encode_places(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Turn text into (tokens,) ids, and say at which character each token begins."""
        import numpy as np

        found = self._tokenizer.encode(text, add_special_tokens=False)
        return np.array(found.ids, np.int32), np.array([first for first, _ in found.offsets], np.int64)

    @property
    def text_end(self) -> NDArray[np.int32]:
        """Give (1 or 0,) the token that ends a text, where there is one."""
        import numpy as np

        found: int | None = self._tokenizer.token_to_id(self.marks[1]) if self.marks[1] else None
        return np.array([] if found is None else [found], dtype=np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        said: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return said

    def to_json(self) -> dict[str, Any]:
        return {"tokenizer": self.document, "marks": list(self.marks)}


def read_fast_tokenizer(path: Path) -> FastTokenizer:
    """Read a tokenizer.json, and of tokenizer_config.json beside it which tokens begin and end a text.

    Args:
        path: of that file, or of a GGUF file, which has the same in its metadata.

    Raises:
        InputError: the package is not installed, it cannot read the file, or that beside it is no JSON object.
    """
    about = beside_tokenizer(path)
    names = (about.get("bos_token"), about.get("eos_token"))
    marks = [name.get("content") if isinstance(name, dict) else name for name in names]
    document = gguf_tokenizer(path)[TOKENIZER] if is_gguf(path) else read_file(path)
    tokenizer = FastTokenizer(document, (marks[0], marks[1]))
    try:
        tokenizer.size  # noqa: B018
    except ImportError as error:
        message = "a tokenizer.json needs the package tokenizers"
        raise InputError.in_option("/data/tokenizer", message, "pip install 'sprunec[hf]'") from error
    except Exception as error:
        raise InputError.at(path, f"is no tokenizer: {error}", "give the tokenizer.json of the model") from error
    return tokenizer


def is_fast(path: Path) -> bool:
    """Tell whether a file is one that the package `tokenizers` runs, and not a list of words."""
    return path.suffix == ".json" or is_gguf(path)


def gguf_lacks(path: Path) -> str:
    """Say why a GGUF file's tokenizer cannot be used; "" where it can."""
    try:
        return missing(read_gguf(path).metadata)
    except (InputError, OSError) as error:  # whoever reads its weights tells more
        return str(error)


def gguf_tokenizer(path: Path) -> dict[str, str]:
    """Write the files of a directory's tokenizer, by name, of what a GGUF file has.

    Raises:
        InputError: it has none, or one that is not known here.
    """
    try:
        return gguf_files(read_gguf(path).metadata)
    except ValueError as error:
        raise InputError.at(path, f"has no tokenizer that can be used: {error}", INSTEAD, "no-tokenizer") from None


def tokenizer_files(path: Path) -> tuple[Path, ...]:
    """List the files that a tokenizer is read from: a tokenizer.json may have its settings beside it."""
    beside = path.with_name("tokenizer_config.json")
    return (path, beside) if path.suffix == ".json" and os.path.isfile(beside) else (path,)


def template_files(path: Path) -> tuple[Path, ...]:
    """List the file of its own that a tokenizer's chat template may have; else it is among the settings."""
    beside = path.with_name(CHAT_TEMPLATE)
    return (beside,) if os.path.isfile(beside) and not is_gguf(path) else ()


def beside_tokenizer(path: Path) -> dict[str, Any]:
    """Read what tokenizer_config.json says, if there is one; of a GGUF file with the chat template in it."""
    if is_gguf(path):
        files = gguf_tokenizer(path)
        config: dict[str, Any] = json.loads(files["tokenizer_config.json"])
        return config | {"chat_template": files.get(CHAT_TEMPLATE)}
    for beside in tokenizer_files(path)[1:]:
        found = read_json(beside, "a tokenizer_config.json", "give the one of the model, or none")
        if not isinstance(found, dict):
            raise InputError.at(beside, "is no JSON object", "give the one of the model, or none")
        return found
    return {}
