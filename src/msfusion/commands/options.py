"""Options and arguments of the command line that several commands share, or that are long."""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

# Written out, as help does not wait for torch; a test holds them to what there is.
METHODS = "msfusion, fedrolex, heterofl, fjord, random, fedavg, fedavg-small, standalone"
VARIANTS = (
    "msfusion:in-step, :independent, :residual-cut, :no-scale, :no-contrast, :no-overlap, :no-twins, :apart"
)
PRESETS = "cifar10, demo, shakespeare, wikitext2"
GENERAL = "no-momentum"
MODELS = "cnn, gpt, mlp, resnet18, vit"
INNER_FIRST = "fedrolex, heterofl, fjord, random, fedavg-small"
_NAMES = (
    f"{METHODS}; or variants: {VARIANTS}, of every method that merges :{GENERAL}, and of {INNER_FIRST}"
    " :inner-first."
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"msfusion {version('msfusion')}")
        raise typer.Exit


def _plain(path: str | None) -> str | None:
    """A path in one way of writing it. An empty text stays one: as a path, it is the working directory."""
    return path and str(Path(path))


_PATH: Any = {"metavar": "PATH", "callback": _plain}
Preset = Annotated[str, typer.Argument(help=f"A preset ({PRESETS}), or a TOML file.")]
MethodOption = typer.Option(help=f"Method: {_NAMES}")
Method = Annotated[str | None, MethodOption]
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
DataPath = Annotated[str | None, typer.Option(help="Where the data stands.", **_PATH)]
OwnData = Annotated[str | None, typer.Option(help="This participant's own data.", **_PATH)]
MovedData = Annotated[str | None, typer.Option(help="Where the run's data stand now.", **_PATH)]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting, e.g. train.lr=0.1, its value as in TOML; may be repeated. See: msfusion settings.",
    ),
]
PlanSet = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Setting of the planned run: twins, contrast.* or train.*, as twins=0.9; may be repeated.",
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
Methods = Annotated[str, typer.Option(help=f"Methods, with commas between them: {_NAMES}")]
Tune = Annotated[
    str | None,
    typer.Option(
        help='Values that every method is tried with on one more seed, as "train.lr=[0.02, 0.05]"; '
        "each takes its best."
    ),
]
Jobs = Annotated[int | None, typer.Option(min=1, help="Runs at a time; by default one per core.")]
Scaling = Annotated[
    bool, typer.Option("--scaling", help="What 4 to 256 participants pay, covering all in every round.")
]
Check = Annotated[
    bool, typer.Option("--check", help="Prove the axes on random values; exit code 1 where one is wrong.")
]
Insecure = Annotated[
    bool, typer.Option("--insecure-network", help="Allow other machines without certificates.")
]
Local = Annotated[int | None, typer.Option(min=1, help="Start so many peers on this machine, for a try.")]
Evaluate = Annotated[bool, typer.Option("--evaluate", help="Score the full model, on this disk.")]
Certs = Annotated[Path | None, typer.Option("--certs", help="Folder of certificates (msfusion certs).")]
CertsFolder = Annotated[Path, typer.Option("--certs", help="Folder of the group's certificates.")]
RunFolder = Annotated[Path, typer.Argument(help="Run directory.")]
ModelOut = Annotated[
    Path, typer.Argument(help="File to write (.safetensors); for a hf: model, a folder as well.")
]
AppPreset = Annotated[str, typer.Argument(help="What the app starts from: a preset, or a TOML file.")]
Version = Annotated[
    bool,
    typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
]
