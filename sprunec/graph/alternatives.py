"""What a training pass would take with options that its plan does not have: a dry run says which would make it fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice

from sprunec.families.base_config import ModelConfig
from sprunec.plan.scale import Setting, cost

DEVICES = (2, 4, 8, 16, 64)
DIVISORS = 6  # of a batch that are tried
RANK, TARGETS = 8, ("attention", "feed_forward")
TOGETHER = " and "


def alternatives(config: ModelConfig, setting: Setting, batch: int) -> dict[str, float]:
    """Give the bytes of memory that a device would have free, by what is written in the plan or on the command line.

    Args:
        setting: of one device.
        batch: sequences of the global batch.
    """
    now = cost(config, setting).memory
    found = {words: now - cost(config, other).memory for words, other in _others(setting, batch)}
    return {words: saved for words, saved in found.items() if saved > 0}


def _others(setting: Setting, batch: int) -> Iterator[tuple[str, Setting]]:
    """Give the settings beside this one: first those that change no result, then those that change it a little."""
    sliced = [(parts, replace(setting, sequences=batch // parts, parts=parts)) for parts in _slices(setting, batch)]
    recomputed = replace(setting, recompute=True)
    if not setting.recompute:
        yield '"activation_checkpointing": true', recomputed
    for parts, other in sliced:
        yield f'"accumulate": {parts}', other
    for parts, other in sliced if not setting.recompute else ():
        yield f'"accumulate": {parts} and "activation_checkpointing": true', replace(other, recompute=True)
    for devices in (n for n in DEVICES if batch % n == 0):
        yield f"--devices {devices}", _shared(setting, batch, devices)
    adapted = replace(setting, rank=RANK, targets=TARGETS)
    if not setting.rank and not setting.freeze:
        yield '"adapter": {"kind": "lora"}', adapted
        if not setting.recompute:
            yield '"adapter": {"kind": "lora"} and "activation_checkpointing": true', replace(adapted, recompute=True)
    for devices in (n for n in DEVICES if batch % n == 0 and not setting.recompute):
        yield f'--devices {devices} and "activation_checkpointing": true', _shared(recomputed, batch, devices)


def _shared(setting: Setting, batch: int, devices: int) -> Setting:
    """Give each device a shard of the model (FSDP2) and its share of the batch."""
    return replace(setting, devices=devices, full=True, sequences=max(1, batch // devices // setting.parts))


def _slices(setting: Setting, batch: int) -> Iterator[int]:
    """Give the first numbers of slices above the present one that a batch parts into, and the most."""
    more = [parts for parts in range(setting.parts + 1, batch + 1) if batch % parts == 0]
    yield from islice(more[:-1], DIVISORS)
    yield from more[-1:]


def fitting(instead: Mapping[str, float], over: float, most: int = 3) -> list[str]:
    """Choose options that free as many bytes as are over; two together only where no single one does.

    Of numbers of slices and devices it is the least that does.
    """
    found = dict[str, str]()
    for words, saved in instead.items():
        if saved >= over:
            found.setdefault("".join(letter for letter in words if not letter.isdecimal()), words)
    single = [words for words in found.values() if TOGETHER not in words]
    return (single or list(found.values()))[:most]
