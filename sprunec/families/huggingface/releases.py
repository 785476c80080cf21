"""Which release of `transformers` is installed, and what it would misread; nothing of it is imported."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sprunec.errors import Diagnostic

OLDEST = "4.57"
# Until when a key of a config.json is passed over, as a whole or by torch's own attention, unless it has these values.
PASSED_OVER: dict[str, tuple[str, tuple[Any, ...]]] = {
    "rope_parameters": ("5", (None,)),  # of which the base and the scaling were keys of their own
    "scale_attn_by_inverse_layer_idx": ("5", (None, False)),
    "scale_attn_weights": ("5", (None, True)),
}


def installed() -> str:
    """Give the release, empty where there is none."""
    try:
        return version("transformers")
    except PackageNotFoundError:
        return ""


def older(release: str, other: str) -> bool:
    """Tell whether a release comes before another one, which may be named by its first numbers."""
    one, two = ([int(number) for number in re.findall(r"\d+", each)] for each in (release, other))
    return one[: len(two)] < two


def config_findings(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[Diagnostic]:
    """Tell that the installed release is too old, for us or for what a config.json says."""
    release = installed()
    if release and older(release, OLDEST):
        message = f"a model of transformers needs its release {OLDEST}, and {release} is installed"
        yield Diagnostic("too-old", message, f"pip install --upgrade 'transformers>={OLDEST}'", pointer="/model_type")
    elif release:
        for key, (known, harmless) in PASSED_OVER.items():
            if config["config"].get(key) not in harmless and older(release, known):
                message = f"transformers {release} passes over {key}, and would compute something else without a word"
                remedy = f"pip install --upgrade 'transformers>={known}'"
                yield Diagnostic("too-old", message, remedy, pointer=f"/{key}")
