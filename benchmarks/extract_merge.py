"""Extract and merge of ten half-width contributions of ResNet-18, beside a plain copy and the usual way.

Three ways over the same windows and the same bytes, turn by turn in one process:

copy   every value of ten sub-models is copied once, tensor by tensor, between buffers that are there already
ours   windows are cut straight into the modules' tensors; contributions are checked, summed and averaged
usual  as the public code of HeteroFL and FedRolex does it: an index tensor per dimension, torch.meshgrid over
       them, a deepcopy of what they pick out for every participant, index_put for values and for counts, the
       mean under a boolean mask. Written anew here from src/fed.py of
       github.com/diaoenmao/HeteroFL-Computation-and-Communication-Efficient-Federated-Learning-for-Heterogeneous-Clients
       (resnet_server.py of github.com/AIoT-MLSys-Lab/FedRolex goes the same way).

Both ways must end with the same full model, within rounding; the benchmark stops where they do not. Shares of
a copy's speed count the bytes of the ten sub-models once, whatever the way reads and writes beside them.

    python benchmarks/extract_merge.py [--repeats 9] [--width 0.5] [--threads 1]
"""

import argparse
import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from machine import machine, seconds, spread
from torch import Tensor

from msfusion.capture import capture
from msfusion.core.axes import AxisMap, Selection, positions
from msfusion.core.cut import index
from msfusion.core.merge import Contribution
from msfusion.core.widths import at_width
from msfusion.learn.methods import Setting, get_method
from msfusion.learn.store import MemoryStore
from msfusion.models import build

PARTICIPANTS = 10
Windows = list[Selection]
Values = dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    full, axes, windows = problem(arguments.width)
    ours, usual = Ours(full, axes, windows), Usual(full, axes, windows)
    ways: list[Copy | Ours | Usual] = [Copy(full, axes, windows), ours, usual]
    times: dict[str, list[tuple[float, float]]] = {type(way).__name__.lower(): [] for way in ways}
    for _ in range(arguments.repeats + 1):
        cut = [seconds(way.extract) for way in ways]
        train(ours.parts)
        train(usual.parts)
        merged = [seconds(way.merge) for way in ways]
        for kept, pair in zip(times.values(), zip(cut, merged, strict=True), strict=True):
            kept.append(pair)
        same(ours.values, usual.values)
    print(machine())
    print(text(times, ours))


def text(times: dict[str, list[tuple[float, float]]], ours: "Ours") -> str:
    moved = sum(tensor.nbytes for one in ours.parts for tensor in one.values())
    lines = [
        f"ResNet-18, {PARTICIPANTS} contributions, {moved / 1e6:.0f} MB in all",
        "",
        "| | copy | ours | usual | ours: share of a copy's speed | usual / ours |",
        "|---|---|---|---|---|---|",
    ]
    for place, name in enumerate(("extract", "merge")):
        copied, own, other = ([pair[place] for pair in times[way][1:]] for way in ("copy", "ours", "usual"))
        cells = [spread([1000 * t for t in column], ".1f") + " ms" for column in (copied, own, other)]
        share = spread([c / o for c, o in zip(copied, own, strict=True)], ".0%")
        ratio = spread([u / o for u, o in zip(other, own, strict=True)], ".1f")
        lines.append(f"| {name} | {' | '.join(cells)} | {share} | {ratio} |")
    copied, own, other = ([sum(pair) for pair in times[way][1:]] for way in ("copy", "ours", "usual"))
    cells = [spread([1000 * t for t in column], ".1f") + " ms" for column in (copied, own, other)]
    share = spread([c / o for c, o in zip(copied, own, strict=True)], ".0%")
    ratio = spread([u / o for u, o in zip(other, own, strict=True)], ".1f")
    lines.append(f"| both | {' | '.join(cells)} | {share} | {ratio} |")
    return "\n".join(lines)


def problem(width: float) -> tuple[Values, AxisMap, Windows]:
    """Parameters of ResNet-18, its axes, and the windows of a round; every axis is cut."""
    torch.manual_seed(0)
    model, example = build("resnet18", None, {})
    axes = capture(model, example).axes
    method = get_method("msfusion:residual-cut")
    plan = at_width(axes, width, "all")
    schedule = method.schedule(Setting(axes, plan, PARTICIPANTS, 0))
    windows = [schedule.windows(0, number, plan) for number in range(PARTICIPANTS)]
    return {name: p.detach() for name, p in model.named_parameters()}, axes, windows


def train(parts: Sequence[Mapping[str, Tensor]]) -> None:
    """Changes that differ between participants."""
    for number, part in enumerate(parts):
        for value in part.values():
            value.mul_(1 + 0.001 * number)


def same(first: Values, second: Values) -> None:
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-4, atol=1e-6)


class Ours:
    """As the simulation does it."""

    def __init__(self, full: Values, axes: AxisMap, windows: Windows) -> None:
        self.values = {name: value.clone() for name, value in full.items()}
        self.windows = windows
        self.store = MemoryStore(self.values, axes, frozenset(full))
        self.parts = [self.store.pull(i, one) for i, one in enumerate(windows)]

    def extract(self) -> None:
        for number, (windows, part) in enumerate(zip(self.windows, self.parts, strict=True)):
            self.store.pull(number, windows, part)

    def merge(self) -> None:
        for number, (windows, part) in enumerate(zip(self.windows, self.parts, strict=True)):
            self.store.push(Contribution(number, windows, part, 1.0))
        self.store.commit(1.0)


class Usual:
    """Index tensors, meshgrid, deepcopy, index_put, masks."""

    def __init__(self, full: Values, axes: AxisMap, windows: Windows) -> None:
        self.values = OrderedDict((name, value.clone()) for name, value in full.items())
        self.axes = axes
        self.windows = windows
        self.parts: list[OrderedDict[str, Tensor]] = []
        self.indices: list[dict[str, list[Tensor]]] = []

    def extract(self) -> None:
        self.indices = [self._index(one) for one in self.windows]
        self.parts = [OrderedDict() for _ in self.windows]
        for name, value in self.values.items():
            for part, own in zip(self.parts, self.indices, strict=True):
                part[name] = copy.deepcopy(value[self._grid(own[name])])

    def merge(self) -> None:
        for name, value in self.values.items():
            total, counts = torch.zeros_like(value), torch.zeros_like(value)
            for part, own in zip(self.parts, self.indices, strict=True):
                total[self._grid(own[name])] += part[name]
                counts[self._grid(own[name])] += 1
            total[counts > 0] = total[counts > 0].div_(counts[counts > 0])
            value[counts > 0] = total[counts > 0]

    def _index(self, windows: Selection) -> dict[str, list[Tensor]]:
        """Per tensor, the indices of the first two dimensions, as there."""
        return {
            name: [index(positions(dim, windows), torch.device("cpu")) for dim in self.axes.tensors[name][:2]]
            for name in self.values
        }

    def _grid(self, indices: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
        return torch.meshgrid(*indices, indexing="ij") if len(indices) > 1 else indices[0]


class Copy:
    """Nothing but the bytes, once."""

    def __init__(self, full: Values, axes: AxisMap, windows: Windows) -> None:
        store = MemoryStore(full, axes, frozenset(full))
        self.source = [t for i, one in enumerate(windows) for t in store.pull(i, one).values()]
        self.target = [torch.empty_like(tensor) for tensor in self.source]

    def extract(self) -> None:
        for target, source in zip(self.target, self.source, strict=True):
            target.copy_(source)

    merge = extract


if __name__ == "__main__":
    main()
