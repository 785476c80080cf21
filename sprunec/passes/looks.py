"""The batches that models are compared on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch

from sprunec.data.batches import PROMPT_TASK, TEXT_SEGMENT, Batch
from sprunec.model.config import ModelConfig
from sprunec.passes.bench import open_data
from sprunec.passes.job import Job


def look(job: Job, config: ModelConfig, count: int) -> Iterator[Batch]:
    """At most `count` batches of held-out text where the plan has any, else one of words drawn at random."""
    if "data" in job.inputs:
        return islice(open_data(job, config).held_out_batches(), count)
    return iter([random_batch(config)])


def random_batch(config: ModelConfig, rows: int = 2, text: int = 64) -> Batch:
    draw = torch.Generator().manual_seed(0)
    prompt, columns = config.prompt_length, config.prompt_length + text
    words = torch.randint(config.vocab_size, (rows, text), generator=draw)
    is_text = torch.arange(columns) >= prompt
    task, kind = min(PROMPT_TASK, config.prompt_types - 1), min(TEXT_SEGMENT, config.segment_types - 1)
    inputs = {
        "input": torch.cat([(torch.arange(prompt) + task * prompt).expand(rows, -1), words], 1),
        "length": torch.full((rows,), columns),
        "context": (~is_text).expand(rows, -1),
        "segment": (is_text * kind).expand(rows, -1),
        "span": torch.zeros(rows, columns, dtype=torch.long),
    }
    return Batch(inputs, inputs["input"])
