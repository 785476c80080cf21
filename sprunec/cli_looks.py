"""Commands that look at a model before there is a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sprunec.cli_options import Debug, Json, TrustCode
from sprunec.compiler.shape import look_at
from sprunec.show import output
from sprunec.show.model_picture import ModelPicture, TwoModels


def inspect(
    model: Annotated[Path, typer.Argument(help="A model config, a checkpoint, or a directory.")],
    diff: Annotated[
        Path | None, typer.Option(metavar="DENSE", help="Show MODEL beside the one that it came of.")
    ] = None,
    trust_remote_code: TrustCode = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what is in a model, what can be cut, and what each cut would save; or two models beside each other.

    Example: sprunec inspect models/SmolLM2-135M
    """
    with output.reporting(as_json, f"inspecting {model}"):
        if as_json:
            from sprunec.compiler.inspect import inspect_model

            found = inspect_model(model)
            output.print_json(found if diff is None else {"dense": inspect_model(diff), "small": found})
        else:
            pictured = look_at(model)
            output.draw(ModelPicture(pictured) if diff is None else TwoModels(look_at(diff), pictured))
