"""Write the small model in the formats people use; what is written here is compared before it is published."""

from __future__ import annotations

import shutil
from typing import Any

from sprunec.durable import write_new
from sprunec.errors import FormError
from sprunec.passes.bench import config_of
from sprunec.passes.job import Job
from sprunec.plan.export_formats import FORMATS, Emission


def run(job: Job) -> dict[str, Any]:
    """A format that cannot hold the model leaves a note of why, and the others are written.

    Raises:
        FormError: none of them can.
    """
    sizes, about, failed = {}, {}, {}
    config = config_of(job)
    emission = Emission(job.inputs["model"], job.inputs["source"], config, job.options, job.files)
    for name in job.options["formats"]:
        directory = job.out / name
        try:
            about[name] = FORMATS[name].write(emission, directory)
        except FormError as error:
            shutil.rmtree(directory, ignore_errors=True)
            failed[name] = error
            write_new(job.out / f"{name}.txt", str(error))
            continue
        sizes[name] = sum(file.stat().st_size for file in directory.iterdir())
    if not about:
        raise next(iter(failed.values()))
    return {"parameters": config.parameters(), "bytes": sizes, "forms": about}
