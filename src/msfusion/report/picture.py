"""The windows picture: which units each participant trained in which round, one pixel per unit and round.

Images rather than drawn rectangles: scattered units would make a million of those, a bitmap stays small and
shows exactly what was recorded.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from msfusion.records import Round, Run

ROUNDS = 40
PARTICIPANTS = 12
_EXACT = 64  # units; an axis with more is scaled down, smoothly
_HEIGHT = 40  # pixels of a strip, about
_NARROW = 160  # pixels, room for the first and the last round's number
_COLUMN = 16  # pixels that a round is wide in an image scaled smoothly, so that rounds do not blur
_LEVELS = 16  # shades of the row that shows all participants together
_GREY = (128, 128, 128)

Bitmap = np.ndarray[
    tuple[int, int], np.dtype[np.uint8]
]  # [unit, round], unit 0 last: it is drawn at the bottom


@dataclass(frozen=True)
class Strip:
    """One row of a panel; `source` is a data URI of a PNG with a pixel per unit (up) and round (right)."""

    name: str
    source: str


@dataclass(frozen=True)
class Panel:
    """One axis: a strip for all participants together, then one per participant."""

    axis: str
    units: int
    strips: tuple[Strip, ...]
    first: int
    last: int
    width: int  # pixels, at most
    height: int
    smooth: bool


@dataclass(frozen=True)
class Picture:
    """The pictured axes of one run; `hidden` participants found no room; `empty`: why there is no panel."""

    panels: tuple[Panel, ...]
    hidden: int
    empty: str


def picture(run: Run, colour: str) -> Picture:
    """Windows of the first rounds and participants; the strip "all" always counts every participant."""
    rounds = run.rounds[:ROUNDS]
    everyone = sorted({n for r in rounds for n in _present(r)})
    shown = everyone[:PARTICIPANTS]
    sizes = run.header["model"]["axes"]
    panels = [
        _panel(axis, sizes[axis], rounds, everyone, colour)
        for axis in run.header["pictured"]
        if axis in sizes and shown
    ]
    empty = "No windows recorded: no axis is cut." if shown else "No round yet."
    return Picture(tuple(panels), len(everyone) - len(shown), empty)


def _panel(axis: str, units: int, rounds: Sequence[Round], everyone: Sequence[int], colour: str) -> Panel:
    smooth = units > _EXACT
    repeat = _COLUMN if smooth else 1
    maps = {n: bitmap(rounds, axis, units, n) for n in everyone}
    strips = [Strip("all", _png(_together(list(maps.values())), _shades(colour), repeat))]
    strips += [Strip(str(n), _png(maps[n], _plain(colour), repeat)) for n in everyone[:PARTICIPANTS]]
    height = _HEIGHT if smooth else units * max(1, _HEIGHT // units)
    width = max(_NARROW, 24 * len(rounds))
    first, last = rounds[0]["round"], rounds[-1]["round"]
    return Panel(axis, units, tuple(strips), first, last, width, height, smooth)


def _present(record: Round) -> set[int]:
    return {*record["participants"], *(d["participant"] for d in record["dropped"])}


def bitmap(rounds: Sequence[Round], axis: str, units: int, participant: int) -> Bitmap:
    """1 where the participant trained the unit in the round; 2 throughout one in which it was not merged."""
    out: Bitmap = np.zeros((units, len(rounds)), dtype=np.uint8)
    for column, record in enumerate(rounds):
        if any(d["participant"] == participant for d in record["dropped"]):
            out[:, column] = 2
        elif participant in record["participants"]:
            # A schedule names only the axes that it cuts: without an entry the axis is whole.
            for first, end in record["windows"].get(axis, {}).get(str(participant), [[0, units]]):
                out[first:end, column] = 1
    return out[::-1]


def _together(maps: Sequence[Bitmap]) -> Bitmap:
    """How many participants trained each unit, in levels of the most that any unit could get."""
    trained = np.sum([m == 1 for m in maps], axis=0)
    levels: Bitmap = np.ceil(trained * _LEVELS / len(maps)).astype(np.uint8)
    return levels


Palette = Sequence[tuple[tuple[int, int, int], int]]  # per pixel value: colour and opacity


def _plain(colour: str) -> Palette:
    return [((0, 0, 0), 0), (_rgb(colour), 255), (_GREY, 90)]


def _shades(colour: str) -> Palette:
    return [((0, 0, 0), 0)] + [(_rgb(colour), 40 + 215 * i // _LEVELS) for i in range(1, _LEVELS + 1)]


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _png(pixels: Bitmap, palette: Palette, repeat: int) -> str:
    wide = np.repeat(pixels, repeat, axis=1)
    image = Image.frombytes("P", wide.shape[::-1], wide.tobytes())
    image.putpalette([channel for rgb, _ in palette for channel in rgb])
    file = io.BytesIO()
    image.save(file, "PNG", transparency=bytes(opacity for _, opacity in palette), optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
