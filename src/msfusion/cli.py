"""The command line. Every command is a few calls into the library and one table or one JSON object."""

import errno
import sys
from pathlib import Path
from typing import Annotated

import typer
import typer.core

from msfusion.commands import given, options
from msfusion.errors import UserError, warn_in_sentences

typer.core.HAS_RICH = False  # or typer 0.20 puts backslashes before the brackets of plain help
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def msfusion(version: options.Version = False) -> None:
    """Train one PyTorch model together, each participant only a slice of its width."""


@app.command()
def simulate(
    preset: options.Preset,
    method: options.Method = None,
    participants: options.Participants = None,
    width: options.Width = None,
    share: options.Share = None,
    memory: options.Memory = None,
    flops: options.Flops = None,
    rounds: options.Rounds = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random choice.")] = None,
    data: options.DataPath = None,
    out: Annotated[Path | None, typer.Option(help="Run directory.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events.")] = False,
    set_: options.Set = None,
    json: options.Json = False,
) -> None:
    """Train one model with all participants on this machine."""
    from msfusion.commands import simulate as command

    settings = given.settings(
        {"method": method, "participants": participants, "rounds": rounds},
        {"width": width, "share": share, "memory": memory, "flops": flops},
        {"seed": seed, "data.path": data},
        set_,
    )
    command.run(preset, settings, out=out, resume=resume, tensorboard=tensorboard, json=json)


@app.command()
def compare(
    preset: options.Preset,
    methods: options.Methods = "msfusion,fedrolex,heterofl,fedavg,fedavg-small",
    seeds: Annotated[int, typer.Option(help="Number of seeds: 0, 1, ...")] = 1,
    tune: options.Tune = None,
    participants: options.Participants = None,
    width: options.Width = None,
    share: options.Share = None,
    memory: options.Memory = None,
    flops: options.Flops = None,
    rounds: options.Rounds = None,
    data: options.DataPath = None,
    out: Annotated[Path | None, typer.Option(help="Folder for all runs and report.html.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the runs in --out.")] = False,
    jobs: options.Jobs = None,
    set_: options.Set = None,
    json: options.Json = False,
) -> None:
    """Run several methods over several seeds: one table, one report."""
    from msfusion.commands import compare as command
    from msfusion.commands.tuning import Grid
    from msfusion.runtimes.cores import cores

    settings = given.settings(
        {"participants": participants, "rounds": rounds},
        {"width": width, "share": share, "memory": memory, "flops": flops},
        {"data.path": data},
        set_,
    )
    names = [name.strip() for name in methods.split(",")]
    comparison = command.Comparison(preset, settings, names, seeds, Grid.parse(tune) if tune else None)
    command.run(comparison, out=out, resume=resume, jobs=jobs or cores(), json=json)


@app.command()
def plan(
    model: options.Model,
    participants: Annotated[int | None, typer.Option(help="Number of participants; 10 if left out.")] = None,
    width: options.Width = None,
    share: options.Share = None,
    memory: options.Memory = None,
    flops: options.Flops = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds to count coverage over; 20 if left out.")] = None,
    method: Annotated[str, options.MethodOption] = "msfusion",
    seed: Annotated[int, typer.Option(help="Seed of the schedule.")] = 0,
    batch: Annotated[int | None, typer.Option(help="Examples per step; 32 if left out.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adam or adamw; sgd if left out.")] = None,
    scaling: options.Scaling = False,
    option: options.Option = None,
    axes: options.Axes = None,
    set_: options.PlanSet = None,
    json: options.Json = False,
) -> None:
    """Cost of sub-models and coverage of the full model, without training."""
    from msfusion.commands import plan as command
    from msfusion.commands import scaling as scaling_command
    from msfusion.commands.idle import warn_of_idle
    from msfusion.runtimes.run import Run
    from msfusion.settings import filled

    part = given.flags({"width": width, "share": share, "memory": memory, "flops": flops})
    more = given.pairs(set_)
    command.check_counted(more)
    if scaling:
        scaling_command.check_given(part, given.flags({"participants": participants, "rounds": rounds}), more)
    train = given.flags({"train.batch": batch, "train.optimizer": optimizer})
    run = filled(Run, {"method": method, "seed": seed, **part, **given.together(train, more)})
    warn_of_idle({**part, **more}, [run])
    subject = command.Subject.load(model, given.pairs(option), axes, run)
    if scaling:
        scaling_command.run(subject, json=json)
    else:
        participants, rounds = (
            (10 if participants is None else participants),
            (20 if rounds is None else rounds),
        )
        command.run(subject, participants=participants, rounds=rounds, json=json)


@app.command()
def axes(
    model: options.Model,
    check: options.Check = False,
    option: options.Option = None,
    axes: options.Axes = None,
    json: options.Json = False,
) -> None:
    """Which axes a model has and which tensors follow them."""
    from msfusion.commands import axes as command

    command.run(model, given.pairs(option), axes, check=check, json=json)


@app.command()
def peer(
    preset: options.Preset,
    participant: Annotated[str | None, typer.Option(help="Which one this is: its number or name.")] = None,
    connect: Annotated[str, typer.Option(help="HOST:PORT of peers or a router, with commas.")] = "",
    listen: Annotated[str | None, typer.Option(help="HOST:PORT on which others reach this peer.")] = None,
    certs: options.Certs = None,
    outbound: Annotated[bool, typer.Option("--outbound", help="Only connect, to a router.")] = False,
    router: Annotated[bool, typer.Option("--router", help="Pass messages on; take no part.")] = False,
    insecure: options.Insecure = False,
    local: options.Local = None,
    data: options.OwnData = None,
    rounds: options.Rounds = None,
    out: Annotated[Path | None, typer.Option(help="This peer's folder: shards and records.")] = None,
    evaluate: options.Evaluate = False,
    export: Annotated[Path | None, typer.Option(help="Folder for the full model in the end.")] = None,
    set_: options.Set = None,
) -> None:
    """Take part in training one model across machines, without a server."""
    from msfusion.commands import peer as command
    from msfusion.peers.settings import Link

    settings = given.settings({"rounds": rounds, "data.path": data}, set_)
    if outbound:
        command.check_unused("--outbound", {"--listen": listen})
    link = Link(given.listed(connect), given.listed(listen or "127.0.0.1:0"), certs, outbound, insecure)
    if local is not None:
        unused = {
            "--participant": participant,
            "--connect": connect,
            "--listen": listen,
            "--certs": certs,
            "--outbound": outbound,
            "--router": router,
            "--export": export,
            "--evaluate": evaluate,
        }
        flags = given.flags({"rounds": rounds, "data.path": data})
        command.local(preset, flags, set_ or [], local, out or Path("runs/peers"), unused)
    elif router:
        unused = {
            "--participant": participant,
            "--outbound": outbound,
            "--out": out,
            "--export": export,
            "--evaluate": evaluate,
        }
        command.check_unused("--router", unused)
        if listen is None:
            raise UserError("expected --listen HOST:PORT, at which peers reach the --router, got none")
        command.route(preset, settings, link)
    elif participant is None:
        raise UserError("expected --participant NAME, or --local K for a try on this machine, got neither")
    else:
        command.run(
            preset,
            settings,
            participant=participant,
            link=link,
            own_data=data is not None,
            out=out or Path(f"runs/peer-{participant}"),
            evaluate=evaluate,
            export=export,
        )


certs_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Certificates of a group of peers.")
app.add_typer(certs_app, name="certs")


@certs_app.command("new")
def certs_new(
    group: Annotated[str, typer.Argument(help="Name of the group.")],
    certs: options.CertsFolder = Path("certs"),
    json: options.Json = False,
) -> None:
    """Make a group's authority."""
    from msfusion.commands import certs as command

    command.new(group, certs, json=json)


@certs_app.command("add")
def certs_add(
    name: Annotated[str, typer.Argument(help="Name of the participant, or 'router'.")],
    certs: options.CertsFolder = Path("certs"),
    days: Annotated[int, typer.Option(min=1, help="Days until the certificate expires.")] = 365,
    json: options.Json = False,
) -> None:
    """Make a participant's certificate and key."""
    from msfusion.commands import certs as command

    command.add(name, certs, days, json=json)


@app.command()
def settings(json: options.Json = False) -> None:
    """Every setting with its type, default and meaning, and the options of the shipped models."""
    from msfusion.commands import settings as command

    command.run(json=json)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or folders of them.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    json: options.Json = False,
) -> None:
    """Write one self-contained HTML file about one run or several."""
    from msfusion.commands.output import emit
    from msfusion.report import write_report

    write_report(runs, out)
    emit({"report": str(out)}, f"report: {out}", json=json)


@app.command()
def evaluate(
    run: options.RunFolder,
    data: options.MovedData = None,
    device: Annotated[str | None, typer.Option(help="Where to compute: cpu, cuda, cuda:1.")] = None,
    json: options.Json = False,
) -> None:
    """Score the saved model of a run on the run's test set."""
    from msfusion.commands import evaluate as command

    command.run(run, data=data, device=device, json=json)


@app.command()
def export(
    run: options.RunFolder,
    out: options.ModelOut,
    shard: Annotated[
        str | None, typer.Option(help="Largest size of a file in a folder; 5GB if left out.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Write the full model of a run."""
    from msfusion.commands import export as command

    command.run(run, out, shard=shard, json=json)


flower = typer.Typer(no_args_is_help=True, help="Run the same training under Flower.")
app.add_typer(flower, name="flower")


@flower.command()
def new(
    folder: Annotated[Path, typer.Argument(help="Folder to write the app into.")],
    preset: options.AppPreset = "demo",
    method: options.Method = None,
    participants: options.Participants = None,
    width: options.Width = None,
    share: options.Share = None,
    memory: options.Memory = None,
    flops: options.Flops = None,
    rounds: options.Rounds = None,
    data: options.DataPath = None,
    set_: options.Set = None,
    json: options.Json = False,
) -> None:
    """Write a Flower app around a model and data."""
    from msfusion.commands import flower as command

    settings = given.settings(
        {"method": method, "participants": participants, "rounds": rounds},
        {"width": width, "share": share, "memory": memory, "flops": flops},
        {"data.path": data},
        set_,
    )
    command.run(folder, preset, settings, json=json)


def main() -> None:
    """Entry point: errors that the user can mend are one sentence and exit code 2."""
    warn_in_sentences()
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        where = [error.filename] if error.filename is not None else []
        if not where and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(": ".join(["error", *map(str, where), str(error.strerror)]), file=sys.stderr)
        sys.exit(2)
