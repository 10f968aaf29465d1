"""The command line. Every command is a few calls into the library and one table or one JSON object."""

import errno
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from msfusion.errors import UserError

typer.core.HAS_RICH = False  # or typer 0.20 puts backslashes before the brackets of plain help
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# Written out, as help does not wait for torch; a test holds them to what there is.
METHODS = "msfusion, fedrolex, heterofl, fjord, random, fedavg, fedavg-small, standalone"
VARIANTS = "msfusion:in-step, :independent, :residual-cut, :no-scale, :no-contrast, :no-overlap, :no-twins"
PRESETS = "cifar10, demo, shakespeare, wikitext2"
GENERAL = "no-momentum"
MODELS = "cnn, gpt, mlp, resnet18, vit"

Preset = Annotated[str, typer.Argument(help=f"A preset ({PRESETS}), or a TOML file.")]
INNER_FIRST = "fedrolex, heterofl, fjord, random, fedavg-small"
_NAMES = (
    f"{METHODS}; or variants: {VARIANTS}, of every method that merges :{GENERAL}, and of {INNER_FIRST}"
    " :inner-first."
)
Method = typer.Option(help=f"Method: {_NAMES}")
Model = Annotated[
    str, typer.Argument(help=f"A shipped model ({MODELS}), path/to/file.py:function, hf:PATH or timm:NAME.")
]
Axes = Annotated[
    Path | None, typer.Option("--axes", help="TOML file that declares axes by hand, as [model.axes] does.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, nothing else.")]
Participants = Annotated[int | None, typer.Option(help="Number of participants.")]
Width = Annotated[
    str | None,
    typer.Option(help="Share of each cut axis that a participant trains; 0.5,0.25: by turns, as below."),
]
Share = Annotated[str | None, typer.Option(help="Largest share of the parameters that it trains.")]
Memory = Annotated[str | None, typer.Option(help="Memory that it has for training: bytes, or 500MB, 2GiB.")]
Flops = Annotated[str | None, typer.Option(help="FLOPs per optimizer step that it can afford.")]
Rounds = Annotated[int | None, typer.Option(help="Number of rounds.")]
DataPath = Annotated[Path | None, typer.Option(help="Where the data stands.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting, e.g. train.lr=0.1, its value as in TOML; may be repeated. See: msfusion settings.",
    ),
]
Option = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="KEY=VALUE",
        help="Keyword argument of the model's builder, its value as in TOML; may be repeated.",
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"msfusion {version('msfusion')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Train one PyTorch model together, each participant only a slice of its width."""


@app.command()
def simulate(
    preset: Preset,
    method: Annotated[str | None, Method] = None,
    participants: Participants = None,
    width: Width = None,
    share: Share = None,
    memory: Memory = None,
    flops: Flops = None,
    rounds: Rounds = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random choice.")] = None,
    data: DataPath = None,
    out: Annotated[Path | None, typer.Option(help="Run directory.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events.")] = False,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Train one model with all participants in this process."""
    from msfusion.commands import simulate as command

    settings = _settings(
        {"method": method, "participants": participants, "rounds": rounds},
        {"width": width, "share": share, "memory": memory, "flops": flops},
        {"seed": seed, "data.path": data and str(data)},
        set_,
    )
    command.run(preset, settings, out=out, resume=resume, tensorboard=tensorboard, json=json)


@app.command()
def compare(
    preset: Preset,
    methods: Annotated[str, typer.Option(help=f"Methods, with commas between them: {_NAMES}")] = (
        "msfusion,fedrolex,heterofl,fedavg,fedavg-small"
    ),
    seeds: Annotated[int, typer.Option(help="Number of seeds: 0, 1, ...")] = 1,
    tune: Annotated[
        str | None,
        typer.Option(
            help='Values that every method is tried with on one more seed, as "train.lr=[0.02, 0.05]"; '
            "each takes its best."
        ),
    ] = None,
    participants: Participants = None,
    width: Width = None,
    share: Share = None,
    memory: Memory = None,
    flops: Flops = None,
    rounds: Rounds = None,
    data: DataPath = None,
    out: Annotated[Path | None, typer.Option(help="Folder for all runs and report.html.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the runs in --out.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; by default one per core.")] = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Run several methods over several seeds: one table, one report."""
    from msfusion.commands import compare as command
    from msfusion.commands.tuning import Grid
    from msfusion.runtimes.cores import cores

    settings = _settings(
        {"participants": participants, "rounds": rounds},
        {"width": width, "share": share, "memory": memory, "flops": flops},
        {"data.path": data and str(data)},
        set_,
    )
    names = [name.strip() for name in methods.split(",")]
    comparison = command.Comparison(preset, settings, names, seeds, Grid.parse(tune) if tune else None)
    command.run(comparison, out=out, resume=resume, jobs=jobs or cores(), json=json)


@app.command()
def plan(
    model: Model,
    participants: Annotated[int, typer.Option(help="Number of participants.")] = 10,
    width: Width = None,
    share: Share = None,
    memory: Memory = None,
    flops: Flops = None,
    rounds: Annotated[int, typer.Option(help="Rounds to count coverage over.")] = 20,
    method: Annotated[str, Method] = "msfusion",
    seed: Annotated[int, typer.Option(help="Seed of the schedule.")] = 0,
    batch: Annotated[int, typer.Option(help="Examples per step.")] = 32,
    optimizer: Annotated[str, typer.Option(help="sgd, adam or adamw.")] = "sgd",
    scaling: Annotated[
        bool, typer.Option("--scaling", help="What 4 to 256 participants pay, covering all in every round.")
    ] = False,
    option: Option = None,
    axes: Axes = None,
    json: Json = False,
) -> None:
    """Cost of sub-models and coverage of the full model, without training."""
    from msfusion.commands import plan as command
    from msfusion.commands import scaling as scaling_command
    from msfusion.runtimes.run import Run
    from msfusion.settings import validated

    part = _given({"width": width, "share": share, "memory": memory, "flops": flops})
    if scaling and part:
        raise UserError(f"expected no --{next(iter(part))} with --scaling, which finds the width itself")
    train = {"batch": batch, "optimizer": optimizer}
    run = validated(Run, {"method": method, "seed": seed, "train": train, **part})
    subject = command.Subject.load(model, _pairs(option), axes, run)
    if scaling:
        scaling_command.run(subject, json=json)
    else:
        command.run(subject, participants=participants, rounds=rounds, json=json)


@app.command()
def axes(
    model: Model,
    check: Annotated[
        bool, typer.Option("--check", help="Prove the axes on random values; exit code 1 where one is wrong.")
    ] = False,
    option: Option = None,
    axes: Axes = None,
    json: Json = False,
) -> None:
    """Which axes a model has and which tensors follow them."""
    from msfusion.commands import axes as command

    command.run(model, _pairs(option), axes, check=check, json=json)


Certs = Annotated[Path | None, typer.Option("--certs", help="Folder of certificates (msfusion certs).")]


@app.command()
def peer(
    preset: Preset,
    participant: Annotated[str | None, typer.Option(help="Which one this is: its number or name.")] = None,
    connect: Annotated[str, typer.Option(help="HOST:PORT of peers or a router, with commas.")] = "",
    listen: Annotated[str | None, typer.Option(help="HOST:PORT on which others reach this peer.")] = None,
    certs: Certs = None,
    outbound: Annotated[bool, typer.Option("--outbound", help="Only connect, to a router.")] = False,
    router: Annotated[bool, typer.Option("--router", help="Pass messages on; take no part.")] = False,
    insecure: Annotated[
        bool, typer.Option("--insecure-network", help="Allow other machines without certificates.")
    ] = False,
    local: Annotated[
        int | None, typer.Option(min=1, help="Start so many peers on this machine, for a try.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="This participant's own data.")] = None,
    rounds: Rounds = None,
    out: Annotated[Path | None, typer.Option(help="This peer's folder: shards and records.")] = None,
    evaluate: Annotated[bool, typer.Option("--evaluate", help="Score the full model, on this disk.")] = False,
    export: Annotated[Path | None, typer.Option(help="Folder for the full model in the end.")] = None,
    set_: Set = None,
) -> None:
    """Take part in training one model across machines, without a server."""
    from msfusion.commands import peer as command
    from msfusion.peers.settings import Link

    settings = _settings({"rounds": rounds, "data.path": data and str(data)}, set_)
    addresses = [address for address in connect.split(",") if address]
    here = [address for address in (listen or "127.0.0.1:0").split(",") if address]
    link = Link(addresses, here, certs, outbound, insecure)
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
        flags = _given({"rounds": rounds, "data.path": data and str(data)})
        command.local(preset, flags, set_ or [], local, out or Path("runs/peers"), unused)
    elif router:
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
CertsFolder = Annotated[Path, typer.Option("--certs", help="Folder of the group's certificates.")]


@certs_app.command("new")
def certs_new(
    group: Annotated[str, typer.Argument(help="Name of the group.")],
    certs: CertsFolder = Path("certs"),
    json: Json = False,
) -> None:
    """Make a group's authority."""
    from msfusion.commands import certs as command

    command.new(group, certs, json=json)


@certs_app.command("add")
def certs_add(
    name: Annotated[str, typer.Argument(help="Name of the participant, or 'router'.")],
    certs: CertsFolder = Path("certs"),
    days: Annotated[int, typer.Option(min=1, help="Days until the certificate expires.")] = 365,
    json: Json = False,
) -> None:
    """Make a participant's certificate and key."""
    from msfusion.commands import certs as command

    command.add(name, certs, days, json=json)


@app.command()
def settings(json: Json = False) -> None:
    """Every setting with its type, default and meaning, and the options of the shipped models."""
    from msfusion.commands import settings as command

    command.run(json=json)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or folders of them.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    json: Json = False,
) -> None:
    """Write one self-contained HTML file about one run or several."""
    from msfusion.commands.output import emit
    from msfusion.report import write_report

    write_report(runs, out)
    emit({"report": str(out)}, f"report: {out}", json=json)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    data: Annotated[Path | None, typer.Option(help="Where the run's data stand now.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to compute: cpu, cuda, cuda:1.")] = None,
    json: Json = False,
) -> None:
    """Score the saved model of a run on the run's test set."""
    from msfusion.commands import evaluate as command

    command.run(run, data=data, device=device, json=json)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    out: Annotated[
        Path, typer.Argument(help="File to write (.safetensors); for a hf: model, a folder as well.")
    ],
    shard: Annotated[str, typer.Option(help="Largest size of a file in a folder.")] = "5GB",
    json: Json = False,
) -> None:
    """Write the full model of a run."""
    from msfusion.commands import export as command

    command.run(run, out, shard=shard, json=json)


flower = typer.Typer(no_args_is_help=True, help="Run the same training under Flower.")
app.add_typer(flower, name="flower")


@flower.command()
def new(
    folder: Annotated[Path, typer.Argument(help="Folder to write the app into.")],
    preset: Annotated[str, typer.Argument(help="What the app starts from: a preset, or a TOML file.")] = (
        "demo"
    ),
    method: Annotated[str | None, Method] = None,
    participants: Participants = None,
    width: Width = None,
    share: Share = None,
    memory: Memory = None,
    flops: Flops = None,
    rounds: Rounds = None,
    data: DataPath = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Write a Flower app around a model and data."""
    from msfusion.commands import flower as command

    settings = _settings(
        {"method": method, "participants": participants, "rounds": rounds},
        {"width": width, "share": share, "memory": memory, "flops": flops},
        {"data.path": data and str(data)},
        set_,
    )
    command.run(folder, preset, settings, json=json)


def _settings(*parts: Any) -> dict[str, Any]:
    """Flags that were given, and ``--set`` over them."""
    *tables, assignments = parts
    return {**_given(*tables), **_pairs(assignments)}


def _given(*tables: dict[str, Any]) -> dict[str, Any]:
    """Flags that are not left out; what a participant can afford may be several values with commas."""
    from msfusion.runtimes.run import CAPACITIES

    given = {key: value for table in tables for key, value in table.items() if value is not None}
    return {k: _values(v) if k in CAPACITIES else v for k, v in given.items()}


def _values(text: str) -> Any:
    from msfusion.config import parse_value

    values = tuple(parse_value(part.strip()) for part in text.split(","))
    return values if len(values) > 1 else values[0]


def _pairs(assignments: list[str] | None) -> dict[str, Any]:
    from msfusion.config import parse_setting

    return dict(map(parse_setting, assignments or []))


def main() -> None:
    """Entry point: errors that the user can mend are one sentence and exit code 2."""
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
