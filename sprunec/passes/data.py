"""Read text once and keep it as ids: a training part, a held-out part, a vocabulary from the training part."""

from __future__ import annotations

from typing import Any

from sprunec.data.batches import save_ids
from sprunec.data.text import read_text, split_text
from sprunec.data.tokenizer import UNKNOWN_ID, Characters
from sprunec.errors import InputError
from sprunec.passes.job import Job


def run(job: Job) -> dict[str, Any]:
    options = job.options
    held_out = job.files["held_out"][0] if "held_out" in job.files else options["held_out"]
    text = read_text(options["source"], job.files.get("paths", ()))
    training, rest = split_text(text, held_out, options["source"])
    tokenizer = Characters.build(training)
    if len(tokenizer.vocabulary) > options["vocab_size"]:
        message = f"the text has {len(tokenizer.vocabulary)} words, vocab_size is {options['vocab_size']}"
        raise InputError.at(options["source"], message, "raise model.config.vocab_size, or give other text")
    train_ids, rest_ids = tokenizer.encode(training), tokenizer.encode(rest)
    save_ids(job.out, train_ids, rest_ids, tokenizer)
    unknown = float((rest_ids == UNKNOWN_ID).mean()) if rest_ids.size else 0.0
    return {
        "training_tokens": int(train_ids.size),
        "held_out_tokens": int(rest_ids.size),
        "vocabulary": len(tokenizer.vocabulary),
        "unknown_share": unknown,
    }
