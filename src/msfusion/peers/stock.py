"""What a peer keeps of a run: its shards and what they are of, ready for a round."""

from dataclasses import dataclass
from pathlib import Path

from msfusion.learn.methods import check_makes_full
from msfusion.learn.shards import Spec
from msfusion.peers.course import Course
from msfusion.peers.disk import Disk
from msfusion.peers.home import Home
from msfusion.peers.initial import make_initial
from msfusion.peers.layout import Layout, shards_for
from msfusion.peers.settings import Peers
from msfusion.peers.states import Version
from msfusion.peers.task import Task
from msfusion.peers.wire import Wire
from msfusion.runtimes.run import Run, check_real
from msfusion.runtimes.setup import Setup, device_of


@dataclass(frozen=True)
class Stock:
    """All that needs no other peer.

    first: the version that the run begins with.
    """

    first: Version
    layout: Layout
    disk: Disk
    course: Course
    wire: Wire
    home: Home


def setup_of(task: Task, run: Run, participants: int) -> Setup:
    """The setup of a run among peers; UserError for a run that cannot be one."""
    check_real(run, "among peers")
    setup = Setup(
        task.captured,
        task.example,
        task.objective,
        run,
        participants=participants,
        device=device_of(run.device),
    )
    check_makes_full(run.method)
    return setup


def stock_of(setup: Setup, task: Task, run: Run, peers: Peers, participants: int, folder: Path) -> Stock:
    """What lies in a peer's folder; with the initial values where it is new."""
    layout = _layout(task, setup, participants)
    first = Version(0, task.fingerprint)
    disk = Disk(folder, layout, first)
    make_initial(folder, task, disk, first, setup.start)
    course, wire = Course(setup, first), Wire(peers.wire)
    home = Home(layout, disk, course, wire, measure=run.adapt.measures, decay=setup.decay)
    return Stock(first, layout, disk, course, wire, home)


def _layout(task: Task, setup: Setup, participants: int) -> Layout:
    specs = {name: Spec.of(p) for name, p in task.model.named_parameters()}
    return Layout(
        task.captured.axes,
        specs,
        shards_for(specs, participants),
        velocities=setup.decay > 0,
        twins=setup.twins,
        frozen=specs.keys() - set(task.captured.trained),
    )
