"""The command line: parse, call, show, exit. Results go to stdout, progress and diagnostics to stderr.

Exit codes: 0 done · 1 a pass failed or the comparison did · 2 usage · 3 invalid plan or input ·
4 emitted, but a mask had not settled · 130 interrupted.
"""

from __future__ import annotations

import functools
import math
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from sprunec.checkpoint.hub import fetch_snapshot
from sprunec.cli_flags import with_flags
from sprunec.cli_looks import init, inspect, schema
from sprunec.cli_options import Debug, Json, Quiet, TrustCode, dry_run_of
from sprunec.cli_reports import report
from sprunec.engines.processes.launch import launch, meet
from sprunec.engines.processes.world import World, launched
from sprunec.errors import Diagnostic, InputError, SprunecError
from sprunec.execution.gc import find_garbage, remove_garbage
from sprunec.interrupts import INTERRUPTED, interrupts
from sprunec.plan.bmcook_flags import Flags
from sprunec.show import output
from sprunec.show.console import SECONDS_BETWEEN_LINES, Progress, print_diagnostics, say
from sprunec.show.report.end_of_run import page_of
from sprunec.show.tables import waste_table
from sprunec.show.tensorboard import FLAG, TensorBoard
from sprunec.unexpected import explained

if TYPE_CHECKING:
    from sprunec.plan.model_config import Fetch
    from sprunec.plan.plan import Plan

app = typer.Typer(
    name="sprunec",
    help="A pruning compiler for language models: a plan goes in, a smaller model that computes the same comes out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
EXIT_CODES = {"done": 0, "target-missed": 4, "comparison-failed": 1}


@app.command()
@with_flags
def validate(
    plans: Annotated[list[Path], typer.Argument(help="Plan files, or bmcook.json.")],
    flags: Flags,
    strict: Annotated[bool, typer.Option(help="A missing checkpoint, data or mask file is an error.")] = False,
    trust_remote_code: TrustCode = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check plans: all errors at once, with file, line, column, what is wrong and what to write instead.

    Example: sprunec validate plans/*.json
    """
    from sprunec.plan.advice.advise import ADVICE
    from sprunec.plan.plan import check_plan

    with output.reporting(as_json, "checking plans"):
        how: dict[str, Any] = {"strict": strict, "flags": flags, "incomplete": not strict, "advice": ADVICE}
        checks = (check_plan(path, **how)[1] for path in plans)
        found = [finding for each in checks for finding in each]
    document = output.diagnostics_document(found)
    if as_json:
        output.print_json(document)
    else:
        print_diagnostics(found)
        if document["valid"]:
            say(f"{len(plans)} valid plan{'s' * (len(plans) > 1)}", Console())
    raise typer.Exit(0 if document["valid"] else InputError.exit_code)


@app.command()
@with_flags
def run(
    plan: Annotated[Path, typer.Argument(help="A plan file, or bmcook.json.")],
    flags: Flags,
    out: Annotated[Path | None, typer.Option(help="Where the run lives; run again there to continue.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the graph, sizes and cost; do nothing.")] = False,
    measure: Annotated[bool, typer.Option("--measure", help="With --dry-run: a time, from a block run here.")] = False,
    throughput: Annotated[
        str | None, typer.Option(metavar="RATE", help="With --dry-run: a time, by operations a second, e.g. 40T.")
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(metavar="GB", min=0.001, help="With --dry-run: what the device has, else this machine."),
    ] = None,
    graph_as: Annotated[
        Literal["mermaid", "dot"] | None, typer.Option("--graph", help="With --dry-run: print the graph in this form.")
    ] = None,
    strict: Annotated[bool, typer.Option(help="With --dry-run: a missing file is an error, as in a run.")] = False,
    devices: Annotated[int, typer.Option(min=1, max=1024, help="Train on so many devices here, a process each.")] = 1,
    tensorboard: Annotated[bool, typer.Option(FLAG, help="Write scalars of all steps to OUT/tensorboard.")] = False,
    quiet: Quiet = False,
    trust_remote_code: TrustCode = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a plan; what is already done is not done again.

    Example: sprunec run plans/quickstart.json --dry-run
    """
    from sprunec.compiler.lower import lower
    from sprunec.execution.execute import execute
    from sprunec.execution.ranks import follow
    from sprunec.graph.weights import DRY_READ

    how = dry_run_of(dry_run, max(devices, launched()[1]), measure, throughput, memory, graph_as)
    chosen, (rank, size) = _out(out, flags.save), launched()
    if devices > 1 and size == 1 and not dry_run:
        raise typer.Exit(launch(devices, sys.argv[1:]))
    fetch = functools.partial(fetch_snapshot, quiet=quiet or rank > 0)
    if rank > 0:
        raise typer.Exit(0 if dry_run else follow(lambda: _checked(plan, flags, True, fetch)[0], chosen))
    progress = Progress(quiet=quiet)
    with interrupts(progress.message, alone=size == 1) as stop, World() if dry_run else meet() as world:
        with output.reporting(as_json, f"reading {plan}"):
            checked, found = _checked(plan, flags, strict or not dry_run, None if dry_run else fetch)
            print_diagnostics(found)
            folder = chosen or Path("runs") / checked.name
            # What no store can have needs no digest, which takes minutes for the largest models.
            unread = dry_run and not (folder / "store").exists()
            graph = lower(checked, DRY_READ if unread else math.inf)
            if dry_run:
                output.show_graph(checked, graph, folder, how, as_json)
                return
            watcher = TensorBoard(folder / "tensorboard", progress) if tensorboard else progress
        leaving = page_of(folder, progress, stop, as_json)
        with output.reporting(as_json, f"running {plan}", folder), leaving, closing(watcher):
            report = execute(graph, folder, watcher, stop, world)
        output.show_report(report, folder, as_json)
    raise typer.Exit(EXIT_CODES[report.status])


@app.command()
@with_flags
def convert(
    bmcook: Annotated[Path, typer.Argument(help="bmcook.json.")],
    flags: Flags,
    seconds: Annotated[
        list[Path] | None, typer.Argument(help="l0_pruning.json, one a stage, in order; or sprune.json.")
    ] = None,
    file: Annotated[Path | None, typer.Option("-o", "--output", help="Write the plan there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="On bad input, too, one JSON document on stdout.")] = False,
    debug: Debug = False,
) -> None:
    """Print BMCook's files as one native plan; its relative paths are the current directory's, or those of -o FILE.

    Example: sprunec convert bmcook.json l0_pruning.json -o plan.json
    """
    from sprunec.bmcook.plans.convert import convert_plan
    from sprunec.compiler.plan_file import plan_text

    with output.reporting(as_json, f"converting {bmcook}"):
        document, found = convert_plan(bmcook, seconds or (), flags, file)
    print_diagnostics(found)
    if file is None or as_json:
        typer.echo(plan_text(document), nl=False)


for _command in (inspect, init, schema, report):
    app.command()(_command)


@app.command("make-data")
def make_data(
    inputs: Annotated[list[Path], typer.Argument(help="Text, one document a line, or .jsonl with a text.")],
    out: Annotated[Path, typer.Option(help="The directory to make.")],
    vocab: Annotated[Path, typer.Option(help="The vocabulary file, one piece a line.")],
    prompt_length: Annotated[int, typer.Option(min=1, help="Prompt positions of the model.")] = 32,
    max_length: Annotated[int, typer.Option(min=1, help="Positions of a sequence, the prompt's among them.")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice between filling in and going on.")] = 1234,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a CPM-Live data set (version 1) from text, for source "cpm-live" and for CPM-Live itself.

    Example: sprunec make-data corpus.txt --out data/pretrain --vocab vocabs/ant.txt
    """
    from sprunec.bmcook.data.set_writer import make_dataset
    from sprunec.families.vocabulary import read_vocabulary

    told = [monotonic()]

    def progress(written: Any) -> None:
        if not quiet and monotonic() - told[0] > SECONDS_BETWEEN_LINES:
            told[0] = monotonic()
            say(f"{written.documents:,} documents read", Console(stderr=True))

    sizes = {"prompt_length": prompt_length, "max_length": max_length, "seed": seed}
    with output.reporting(as_json, f"making {out}"), interrupts(lambda text: None):
        made = make_dataset(out, inputs, read_vocabulary(vocab), **sizes, progress=progress)
    if as_json:
        output.print_json({"directory": str(out), **asdict(made)})
        return
    summary = f"{out}: {made.documents:,} documents, {made.records:,} records, {made.tokens:,} tokens; left out: "
    say(summary + f"{made.tails:,} pieces of under 32 tokens, {made.unknown:,} unknown tokens", Console())


@app.command()
def gc(
    out: Annotated[Path, typer.Argument(help="The folder of runs, e.g. runs/NAME.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go, and how much it is.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Remove what no plan in OUT refers to, and what stopped or damaged runs left behind.

    Example: sprunec gc runs/quickstart --dry-run
    """
    with output.reporting(as_json, f"cleaning {out}"):
        found = find_garbage(out)
        if not as_json:
            Console().print(waste_table(found, dry_run), crop=False)
        if not dry_run:
            remove_garbage(out, found)
    if as_json:
        output.print_json(found | {"removed": not dry_run})


def _checked(plan: Path, flags: Flags, strict: bool, fetch: Fetch | None) -> tuple[Plan, tuple[Diagnostic, ...]]:
    """Read a plan; return it and the warnings. Raise InputError if it, or a file that it names, cannot be used."""
    from sprunec.plan.advice.advise import ADVICE
    from sprunec.plan.plan import check_plan

    checked, found = check_plan(plan, strict=strict, flags=flags, fetch=fetch, advice=ADVICE)
    if checked is None:
        raise InputError(*found)
    return checked, found


def _out(out: Path | None, save: str | None) -> Path | None:
    """--save is the script's word for --out."""
    if out is not None and save is not None and Path(save) != out:
        raise typer.BadParameter(f"--out {out} and --save {save} are two folders; give one of them")
    return out if save is None else Path(save)


def main() -> None:
    """Run the command; every error becomes one message and an exit code."""
    try:
        app()
    except (Exception, KeyboardInterrupt) as error:
        told = explained(error, " ".join(["sprunec", *sys.argv[1:2]]), None)
        if isinstance(told, KeyboardInterrupt):
            sys.exit(INTERRUPTED)
        output.print_error(told)
        sys.exit(told.exit_code if isinstance(told, SprunecError) else SprunecError.exit_code)
