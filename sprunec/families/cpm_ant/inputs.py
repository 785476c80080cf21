"""What a CPM-Ant is given: documents behind prompts of their tasks, one or several in a row.

A prompt is seen from anywhere in its document, and is a segment of its own, number 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sprunec.families.base import Document
from sprunec.families.cpm_ant.config import PAIR_TASK, TEXT_SEGMENT, TEXT_TASK, ModelConfig


def arrange(
    config: ModelConfig, rows: Sequence[Sequence[Document]], width: int, base: int = 0
) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
    """Make inputs of `CPMAnt.forward`, padded on the right; padding is a span of its own.

    Args:
        base: what is added to the prompt ids of the second and later documents of a row, which the model looks up
            among the tokens: 0 gives the tokens of these numbers; vocab_size gives the prompt's own embeddings.
    """
    shape = len(rows), width
    ids, segment, span = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    context, text = (np.zeros(shape, dtype=bool) for _ in range(2))
    lengths = np.zeros(len(rows), dtype=np.int64)
    prompt = np.arange(config.prompt_length)
    for row, documents in enumerate(rows):
        begin = 0
        for ordinal, document in enumerate(documents):
            start = begin + config.prompt_length
            end, added = start + document.tokens.size, base if ordinal else 0
            ids[row, begin:start] = prompt + config.prompt_length * _task(config, document) + added
            ids[row, start:end], context[row, begin:start] = document.tokens, True
            context[row, start:end], text[row, start:end] = document.context, True
            plain = min(TEXT_SEGMENT, config.segment_types - 1)
            segment[row, start:end] = plain if document.segment is None else document.segment
            span[row, begin:end] = ordinal
            begin = end
        span[row, begin:] = len(documents)
        lengths[row] = begin
    return {"input": ids, "length": lengths, "context": context, "segment": segment, "span": span}, text


def proceed(config: ModelConfig, document: Document) -> dict[str, Any]:
    """Make what `CPMAnt.generate` is given: (1, n) ids, all of them context or none, and the prompt's task."""
    ids = torch.from_numpy(document.tokens.astype(np.int64))[None]
    return {"input": ids, "task": _task(config, document), "context": bool(document.context.all())}


def _task(config: ModelConfig, document: Document) -> int:
    """Take its own, or else the one for pairs where something is given to be seen, or the one for plain text."""
    if document.task is not None:
        return document.task
    return min(PAIR_TASK if document.context.any() else TEXT_TASK, config.prompt_types - 1)
