"""A plan's model named as a directory: its config.json and the weights in it, put into the plan by their own keys."""

from __future__ import annotations

import os
from dataclasses import replace

from sprunec.checkpoint.layouts import BIN, CONFIG, WEIGHTS, has_weights
from sprunec.errors import Diagnostic
from sprunec.plan.resolve import Draft
from sprunec.plan.source import Source

CONFIG_PLACE, PATH_PLACE, CHECKPOINT_PLACE = "/model/config", "/model/path", "/model/checkpoint"


def open_directory(source: Source, draft: Draft) -> tuple[Source, list[Diagnostic]]:
    """The plan with `config` and `checkpoint` as files, and what is wrong with the directory that it names.

    What is found later about these files is told where the plan names the directory.
    """
    model = source.value.get("model")
    model = model if isinstance(model, dict) else {}
    place = PATH_PLACE if "path" in model else CONFIG_PLACE
    written = model.get(place.rpartition("/")[2])
    if not isinstance(written, str) or not draft.sound("/model"):
        return source, []
    directory = draft.folder / written
    if place == CONFIG_PLACE and not os.path.isdir(directory):
        return source, []
    if not os.path.isdir(directory):
        return source, [_no_directory(source, str(directory), os.path.exists(directory))]
    if not os.path.isfile(directory / CONFIG):
        message = f"the directory {directory} has no {CONFIG}"
        return source, [
            source.find("missing-file", place, message, "name the directory that has one, or the file itself")
        ]
    named = {"config": os.path.join(written, CONFIG)}
    origins = {CONFIG_PLACE: (source, place)}
    found: list[Diagnostic] = []
    if place == PATH_PLACE or ("checkpoint" not in model and has_weights(directory)):
        named["checkpoint"] = written
        origins[CHECKPOINT_PLACE] = (source, place)
    elif "checkpoint" not in model:
        message = f"the directory {directory} has no weights: the model is a new one"
        hint = f"put {WEIGHTS} or {BIN} into it, or name a checkpoint"
        found = [source.warn("new-model", place, message, hint)]
    rest = {key: value for key, value in model.items() if key != "path"}
    opened = replace(source, value=source.value | {"model": rest | named}, origins={**source.origins, **origins})
    return opened, found


def _no_directory(source: Source, directory: str, there: bool) -> Diagnostic:
    if there:
        message, hint = f"{directory} is no directory", "name the config as config and the weights as checkpoint"
        return source.find("not-a-folder", PATH_PLACE, message, hint)
    return source.find("missing-file", PATH_PLACE, f"there is no directory {directory}", "check the path")


def path_as_config(source: Source) -> Source:
    """The plan with its model's `path` as `config`, beside which flags can put another checkpoint."""
    model = source.value.get("model")
    if not isinstance(model, dict) or "path" not in model or "config" in model:
        return source
    moved = {"config" if key == "path" else key: value for key, value in model.items()}
    places, keys = dict(source.places), dict(source.keys)
    for marks in (places, keys):
        if PATH_PLACE in marks:
            marks[CONFIG_PLACE] = marks.pop(PATH_PLACE)
    return replace(source, value=source.value | {"model": moved}, places=places, keys=keys)
