"""Find what can be cut before anything is trained, so that a model that cannot be traced fails at once."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from sprunec.durable import write_new
from sprunec.graph.inspect import describe
from sprunec.passes.bench import config_of
from sprunec.passes.job import Job


def run(job: Job) -> dict[str, Any]:
    sites = describe(config_of(job))["sites"]
    write_new(job.out / "sites.json", json.dumps(sites, indent=1))
    units = Counter(dict.fromkeys(("attention", "feed_forward", "head", "dim_head", "dim_ff"), 0))
    for site in sites:
        units[site["unit"]] += site["size"]
    return {"units": dict(units)}
