"""Commands that look at a model, or at what can be written, before there is a plan."""

from __future__ import annotations

import math
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sprunec.cli_options import Debug, Json, TrustCode
from sprunec.compiler.shape import look_at
from sprunec.plan.schema import bundled, schema_names
from sprunec.plan.targets import parameter_count
from sprunec.show import output
from sprunec.show.console import say
from sprunec.show.model_picture import ModelPicture, TwoModels
from sprunec.show.tables import schemas_table


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


def init(
    model: Annotated[Path, typer.Argument(help="A model config, a checkpoint, a directory, or a cached model's name.")],
    parameters: Annotated[
        str | None, typer.Option(metavar="COUNT", help="The whole model's number of parameters, e.g. 110M.")
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(metavar="SHARE", help="The share to remove of what can be cut, e.g. 0.3.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(metavar="GB", help="Of the weights, and keys and values of one text of 4,096.")
    ] = None,
    latency: Annotated[
        float | None, typer.Option(metavar="MS", help="Milliseconds for a token, as this device decodes.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="Text, JSON lines, tables or a binary set; again for more of them.")
    ] = None,
    file: Annotated[Path | None, typer.Option("-o", "--output", help="Write the plan there.")] = None,
    trust_remote_code: TrustCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="On bad input, too, one JSON document on stdout.")] = False,
    debug: Debug = False,
) -> None:
    """Write a first plan for a model: the recipe that is recommended for its size, with the reasons on stderr.

    Example: sprunec init models/SmolLM2-135M --parameters 110M -o plan.json
    """
    from sprunec.compiler.plan_file import plan_text, write_plan
    from sprunec.compiler.recommended import Wish, recommend

    if parameters is not None and sparsity is not None:
        raise typer.BadParameter("--parameters and --sparsity are two ways to say one size; give one of them")
    share, sizes = _above("--sparsity", sparsity, 1.0), (_above("--memory", memory), _above("--latency", latency))
    wish = Wish(_count(parameters), share, *sizes)
    with output.reporting(as_json, f"writing a plan for {model}"):
        found = recommend(model, wish, tuple(data or ()), file)
        if file is not None:
            write_plan(file, found.document)
    for reason in found.reasons:
        say(f"- {reason}", Console(stderr=True))
    if file is None or as_json:
        typer.echo(plan_text(found.document), nl=False)
    else:
        say(f"{file}: sprunec run {file} --dry-run says what it takes, sprunec run {file} does it", Console())


def _count(written: str | None) -> int | None:
    """Read a number of parameters as plans write it."""
    if written is None:
        return None
    if not re.fullmatch(r"\d{1,12}(\.\d{1,9})?[KMB]|\d{1,15}", written):
        raise typer.BadParameter(f"--parameters {written} is no number of parameters; write it as 110M")
    return parameter_count(written if written[-1] in "KMB" else int(written))


def _above(option: str, given: float | None, below: float = math.inf) -> float | None:
    if given is not None and not 0 < given < below:
        most = f" and below {below:g}" if below < math.inf else ""
        raise typer.BadParameter(f"{option} {given:g} is not above 0{most}")
    return given


def schema(
    name: Annotated[str | None, typer.Argument(help="Of a schema; without one they are listed.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print a JSON schema, whole, by which editors complete and explain what it is of; or list the schemas.

    Example: sprunec schema plan > plan.schema.json
    """
    names = schema_names()
    if name is None:
        about = {each: bundled(each)["description"] for each in names}
        if as_json:
            output.print_json({"schemas": about})
        else:
            output.draw(schemas_table(about))
    elif name not in names:
        close = get_close_matches(name, names, n=3)
        instead = f"did you mean {' or '.join(close)}?" if close else "sprunec schema lists them"
        raise typer.BadParameter(f"there is no schema {name}; {instead}")
    else:
        output.print_json(bundled(name))
