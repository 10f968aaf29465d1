"""Finds runs and sorts them: a task holds what can be compared, a group the seeds of one method."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msfusion.errors import UserError
from msfusion.records import FILE_NAME, Run, read
from msfusion.report.numbers import Metric
from msfusion.settings import flat

# Settings that say where or how often a run was made, not what was run: they never tell two groups apart.
_INCIDENTAL = frozenset({"seed", "device", "checkpoint_every", "method", "workers", "threads"})


@dataclass(frozen=True)
class Group:
    """The runs of one method with one configuration, ascending by seed."""

    label: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        return self.runs[0]


@dataclass(frozen=True)
class Task:
    """Groups that train the same model on the same data, divided alike among as many participants, and are
    judged by the same metric. What tells the task from others of its model and data is in its title."""

    title: str
    metric: Metric
    groups: tuple[Group, ...]


def find(paths: Sequence[Path]) -> dict[Path, Run]:
    """Every run at or below the paths, each once, in order. UserError where there is none."""
    found: dict[Path, Run] = {}
    for path in paths:
        for directory in _directories(path):
            found.setdefault(directory.resolve(), read(directory))
    if not found:
        raise UserError("expected at least one run, got none: give run directories or a directory above them")
    return _of_one_peer_each(found)


def _of_one_peer_each(found: Mapping[Path, Run]) -> dict[Path, Run]:
    """All peers of a run write down its rounds: of several, the one that tells most of it."""
    fullest: dict[str, Path] = {}
    for path, run in found.items():
        if any("own" in record for record in run.rounds):
            facts = [run.header["method"], run.header["seed"], run.header["model"], _settings(run)]
            key = json.dumps(facts, sort_keys=True)
            fullest[key] = max(fullest.get(key, path), path, key=lambda one: _told(found[one]))
        else:
            fullest[str(path)] = path
    kept = set(fullest.values())
    return {path: run for path, run in found.items() if path in kept}


def _directories(path: Path) -> list[Path]:
    if not path.is_dir() or (path / FILE_NAME).exists():
        return [path]
    below = sorted(file.parent for file in path.rglob(FILE_NAME) if not _tries(file, path))
    if not below:
        raise UserError(f"expected runs in {path}, but none holds {FILE_NAME}: give a run directory")
    return below


def _tries(file: Path, below: Path) -> bool:
    """Whether a run only tried a value for others, in a folder that lies below the one looked at."""
    above = [folder for folder in file.parents if folder.is_relative_to(below) and folder != below]
    return any(f.name == "tuning" and f.with_suffix(".json").exists() for f in above)


def tasks(found: Mapping[Path, Run]) -> tuple[Task, ...]:
    """The runs by task, then by method and configuration; the order of the paths does not matter."""
    by_task: dict[tuple[str, Metric, str], dict[Path, Run]] = {}
    facts = _facts(found)
    for path, run in found.items():
        key = (_title(run), run.header["metric"], json.dumps(facts[path], sort_keys=True))
        by_task.setdefault(key, {})[path] = run
    out = []
    for (title, metric, own), members in sorted(by_task.items()):
        others = [json.loads(f) for name, measure, f in by_task if (name, measure) == (title, metric)]
        out.append(Task(title + _telling(json.loads(own), others), metric, _groups(members)))
    return tuple(out)


def _title(run: Run) -> str:
    data = run.header["config"].get("data")
    name = data.get("name") if isinstance(data, Mapping) else data
    model = run.header["model"]["name"]
    return f"{model} on {name}" if isinstance(name, str) else model


def _facts(found: Mapping[Path, Run]) -> dict[Path, dict[str, str]]:
    """What must be the same of runs in one table, beside model and metric. What a run does not know is taken
    from one that is like it in all else."""
    problems = {path: _problem(run) for path, run in found.items()}
    facts = {path: dict(own) for path, own in problems.items()}
    for name, told in (("training examples", _trained), ("test examples", _tested), ("data", _digest)):
        known = {path: told(run) for path, run in found.items()}
        for path, own in known.items():
            alike = (known[other] for other in found if problems[other] == problems[path])
            facts[path][name] = own or min((one for one in alike if one), default="")
    return facts


def _problem(run: Run) -> dict[str, str]:
    """Model and data, as far as every seed has the same; where data lie says nothing, their number does."""
    config = flat(run.header["config"])
    own = {key: value for key, value in config.items() if key.startswith("data.") and key != "data.path"}
    return own | {
        "parameters": f"{run.header['model']['parameters']:,}",
        "participants": str(run.participants),
    }


def _digest(run: Run) -> str:
    """Of the data; empty where the header has none."""
    return run.header.get("data", "")


def _trained(run: Run) -> str:
    """Examples to train on; empty where not all participants were known at the start, as peers are not, and
    where it depends on the seed which classes are left out."""
    if flat(run.header["config"]).get("data.partition") == "pathological":
        return ""
    there = run.header["participants"]
    return f"{sum(one['examples'] for one in there):,}" if len(there) == run.participants else ""


def _tested(run: Run) -> str:
    """Examples to test on; empty before the first evaluation."""
    scores = (record["evaluation"] for record in reversed(run.rounds))
    return next((f"{score['examples']:,}" for score in scores if score is not None), "")


def _telling(own: Mapping[str, str], all_of_them: Sequence[Mapping[str, str]]) -> str:
    """In brackets, what sets one apart from the others; empty where nothing does."""
    keys = [key for key in sorted(own) if len({one.get(key) for one in all_of_them}) > 1]
    said = [f"{key} {own[key]}" for key in keys if own[key] not in ("null", "")]
    return f" ({', '.join(said)})" if said else ""


def differing(groups: Sequence[Group]) -> list[str]:
    """The settings of which methods in one table have others, but for those that the labels tell: each with
    its values and who has them."""
    settings = {group.label: _settings(group.first) for group in groups}
    out = []
    for key in sorted({key for own in settings.values() for key in own if not key.startswith("data.")}):
        by_value: dict[str, list[str]] = {}
        for label, own in settings.items():
            by_value.setdefault(own.get(key, "not recorded"), []).append(label)
        if len(by_value) > 1 and not all(f"{key} {own.get(key)}" in label for label, own in settings.items()):
            values = (f"{'none' if v == 'null' else v} ({', '.join(who)})" for v, who in by_value.items())
            out.append(f"{key}: {', '.join(values)}")
    return out


def _groups(found: Mapping[Path, Run]) -> tuple[Group, ...]:
    by_key: dict[tuple[str, str], dict[int, tuple[Path, Run]]] = {}
    for path, run in found.items():
        seeds = by_key.setdefault((run.header["method"], json.dumps(_settings(run), sort_keys=True)), {})
        seed = run.header["seed"]
        if seed in seeds:
            raise UserError(
                f"expected one run per method, configuration and seed, got {run.header['method']} with seed "
                f"{seed} in {seeds[seed][0]} and in {path}: leave one of them out"
            )
        seeds[seed] = path, run
    bundles = [tuple(run for _, (_, run) in sorted(seeds.items())) for _, seeds in sorted(by_key.items())]
    groups = (Group(label, runs) for label, runs in zip(_labels(bundles), bundles, strict=True))
    return tuple(sorted(groups, key=lambda group: rank(group.label)))


def _told(run: Run) -> tuple[int, int]:
    """How much of a run its records tell: scores of the full model, then rounds."""
    return sum(record["evaluation"] is not None for record in run.rounds), len(run.rounds)


def _settings(run: Run) -> dict[str, str]:
    """What was run; rounds as they were played, as a run that goes on may have more than its header says."""
    own = {k: v for k, v in flat(run.header["config"]).items() if k not in _INCIDENTAL}
    if own.get("rounds", "").isdigit():
        own["rounds"] = str(max(int(own["rounds"]), len(run.rounds)))
    return own


def _labels(bundles: Sequence[tuple[Run, ...]]) -> Iterator[str]:
    """The method's name and, where one method comes with several configurations, what sets them apart."""
    for bundle in bundles:
        method = bundle[0].header["method"]
        siblings = [_settings(b[0]) for b in bundles if b[0].header["method"] == method]
        yield method + _telling(_settings(bundle[0]), siblings)


def rank(label: str) -> tuple[bool, str]:
    """The order of methods wherever they are not ranked by result: msfusion and its variants first."""
    return not label.startswith("msfusion"), label
