"""One participant among peers: its own training, round after round."""

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from msfusion.core.axes import Selection
from msfusion.core.merge import Contribution, extract
from msfusion.errors import Diverged, TooFew
from msfusion.learn.evaluation import Evaluation
from msfusion.learn.submodels import transient
from msfusion.peers import agreement
from msfusion.peers.board import Board
from msfusion.peers.chronicle import Chronicle, own_line
from msfusion.peers.disturbed import Disturbed
from msfusion.peers.ending import Ending
from msfusion.peers.gather import Gathering
from msfusion.peers.initial import buffers_in
from msfusion.peers.member import Member
from msfusion.peers.network import Network
from msfusion.peers.points import reached
from msfusion.peers.pull import Pull
from msfusion.peers.scores import score_full, score_own
from msfusion.peers.settings import Link, Peers, name_of
from msfusion.peers.states import Given, Offer, State, Version
from msfusion.peers.stock import setup_of, stock_of
from msfusion.peers.task import Progress, Task
from msfusion.peers.teller import Teller
from msfusion.peers.transport import configuration
from msfusion.peers.witness import Witness
from msfusion.records import Own
from msfusion.runtimes.kept import Kept
from msfusion.runtimes.run import Run

PREVIOUS = "previous"
_UNLINKED = 5.0  # seconds without a link to someone, at least, before this peer connects anew


class Peer:
    """A participant's process.

    folder: of this peer alone; its shards and records.
    say: tells the user what happened.
    evaluate: score the full model on the run's schedule.
    export: folder for the full model, once all rounds are done.
    """

    def __init__(
        self,
        task: Task,
        run: Run,
        peers: Peers,
        number: int,
        participants: int,
        folder: Path,
        link: Link,
        say: Callable[[str], None],
        show: Callable[[Progress], None] = lambda progress: None,
        *,
        evaluate: bool = False,
        export: Path | None = None,
    ) -> None:
        self._config = configuration(link, name_of(number, peers.names), peers.group, peers.lease)
        self.setup = setup_of(task, run, participants)
        self.own = self.setup.participant(number, task.data)
        self.stock = stock_of(self.setup, task, run, peers, participants, folder)
        self.run_settings, self.peers, self.task, self.number = run, peers, task, number
        self.folder, self._link, self._say, self._show = folder, link, say, show
        self._evaluate, self._export = evaluate, export
        here = torch.device("cpu")  # beside the pulled values, which it is laid over
        self._kept = Kept(folder / PREVIOUS, number, here)
        first, disk = self.stock.first, self.stock.disk
        committed = disk.committed()
        state = State(number, secrets.token_hex(4), len(task.data), committed, first, disk.holds())  # type: ignore[arg-type]
        self.board = Board(state, patience=max(10.0, 3 * peers.lease))
        self._tell = Teller(self.board, peers.names, say)
        self._everyone = list(range(participants))
        self.member = Member(run, peers, participants, self._expected, self.stock, self.board, self._tell)
        self.pull = Pull(number, task.captured.axes, self.stock, self.member.sources)
        late = committed.round == run.rounds
        self._ending = Ending(peers, participants, run.rounds, self.board, self.member, late=late)
        self.progress = Progress()
        self.chronicle = Chronicle(folder, self.setup, task.described, first, disk.past, self.stock.wire)
        self._witness = Witness(run, self.chronicle, self.board, self._score if evaluate else None, say)

    def run(self) -> None:
        """Take part until all rounds are done."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.run_settings.threads)
        if self._link.hidden and len(self._everyone) > 2:  # with two, the link that it opens is all
            self._tell.hidden(len(self._everyone))
        self.network = self._connected()
        self._gathering = Gathering(self.stock, self.member, self.network)
        try:
            self.member.start(self.network)
            self._rounds()
            wanted = self._evaluate or self._export is not None
            self._ending.finish(self._last, lambda: self._shown("waiting"), wanted=wanted)
            self.progress.round = self.run_settings.rounds
            self._shown("done")
            self._ending.linger(self.network.sent.total)
        finally:
            self.member.stop()
            self.network.close()
            self.chronicle.close()
            torch.set_num_threads(before)

    def _sound(self, state: State) -> bool:
        axes, head = self.setup.captured.axes, self.setup.head
        sizes = {name: (dimension, axes.shape(name, {})[dimension]) for name, dimension in head.items()}
        known = [one.view.epoch for one in (*self.board.last().values(), self.board.own) if one.view]
        newest = max(known, default=0)
        return agreement.sound(state, len(self._everyone), len(self.stock.layout), sizes, newest)

    def _connected(self) -> Network:
        return Network(
            self._config,
            self.peers.group,
            self.task.fingerprint,
            self.board,
            self.stock.home.serve,
            self._sound,
            self._tell.stranger,
            partial(self._tell.twin, self.number),
            self._tell.split,
            max(_UNLINKED, 2 * self.peers.lease),
            partial(self._tell.alone, self._link, self.peers.group),
        )

    def _expected(self, round: int) -> list[int]:
        return self.setup.attendance.present(round, self._everyone)

    def _rounds(self) -> None:
        trained: Version | None = None
        while (version := self._next(trained)).round < self.run_settings.rounds:
            trained = version
            self._witness.look(*self.stock.course.stand)
            if self.number not in self._expected(version.round):
                continue
            try:
                self._train(version)
            except Disturbed:
                trained = None

    def _next(self, trained: Version | None) -> Version:
        """Wait for a version that is not trained yet, or the last."""

        def there() -> bool:
            own = self.board.own
            if self.member.error is not None:
                return True
            if own.committed.round == self.run_settings.rounds:
                return True
            return own.view is not None and own.at != trained and own.at.round < self.run_settings.rounds

        while not self.board.wait(there, 0.5):
            self._shown("waiting")
        if self.member.error is not None:
            raise self.member.error
        own = self.board.own
        return own.committed if own.committed.round == self.run_settings.rounds else own.at

    def _train(self, version: Version) -> None:
        self.progress.round = version.round
        self._shown("pull")
        reached("pull", version.round)
        learner = self.stock.course.learner
        windows = self.stock.course.windows(version, self.number)
        if windows is None:
            raise Disturbed
        values = self._pull(version, windows)
        task = self.task
        module = learner.submodels.load(windows, values)
        self.progress.score = score_own(module, task.data, task.objective, task.seed)
        self._shown("train")
        reached("train", version.round)
        previous = self._kept.before(version.round) if learner.remembers else None
        try:
            contribution, loss, memory = learner.train(version.round, self.own, windows, values, previous)
        except (Diverged, TooFew) as error:
            self._say(str(error))
            why = "too few examples for batch norm" if isinstance(error, TooFew) else "diverged"
            self._answer(Offer(version, Given(self.number, self.own.examples, None, ""), failed=why))
            return
        contribution = _on_cpu(contribution)
        self.progress.loss = loss
        self._witness.saw(version, self._own_line())
        if memory is not None:
            self._kept.keep(version.round, memory)
        self._offer(version, self._travelling(contribution, values), loss)
        self._shown("push")

    def _pull(self, version: Version, windows: Selection) -> dict[str, Tensor]:
        """The values of the sub-model, and its buffers."""
        values = self.pull.values(
            version,
            windows,
            self.network,
            lambda: self.member.error is None and self.board.own.at == version,
        )
        return {**values, **extract(buffers_in(self.folder), self.setup.captured.axes, windows)}

    def _travelling(self, contribution: Contribution, pulled: Mapping[str, Tensor]) -> Contribution:
        """A contribution as it is handed over."""
        values = {
            n: self.stock.wire.handed(v, pulled[n]).contiguous() for n, v in contribution.values.items()
        }
        return replace(contribution, values=values)

    def _offer(self, version: Version, contribution: Contribution, loss: float) -> None:
        digest = hashlib.sha256(str(self.number).encode())  # two may hand over the same values
        for value in contribution.values.values():
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
        own = digest.hexdigest()[:32]
        self.stock.home.offer(own, contribution)
        given = Given(self.number, self.own.examples, loss, own)
        self._answer(Offer(version, given, dict(contribution.only)))

    def _answer(self, offer: Offer) -> None:
        with self.board.changed:
            if self.board.own.at == offer.version:
                self.board.update(offer=offer)

    def _shown(self, stage: str) -> None:
        progress = self.progress
        progress.stage = stage
        progress.here = [name_of(n, self.peers.names) for n in self.board.here()]
        progress.sent, progress.received = self.network.sent.total(), self.network.received.total()
        self._show(progress)

    def _own_line(self) -> Own:
        assert self.progress.score is not None
        sent, received = self.network.sent.total(), self.network.received.total()
        return own_line(self.number, self.progress.score, sent, received, list(self.board.here()))

    def _score(self, version: Version) -> Evaluation:
        """Score the full model; raises Disturbed where it cannot be had any more."""
        self._shown("evaluate")
        task = self.task
        whole = self._gathering.into(self.folder / "model", version, buffers_in(self.folder))
        score = score_full(task.model, whole, task.data, task.test, task.objective, task.seed)
        self.progress.full = score
        return score

    def _stored(self) -> dict[str, Tensor]:
        """The buffers that belong into a file of the model: the persistent ones."""
        without = transient(self.task.model)
        return {name: value for name, value in buffers_in(self.folder).items() if name not in without}

    def _last(self) -> bool:
        """Score, record and export what all rounds have led to; whether the group left the time."""
        done = self._witness.look(*self.stock.course.stand)
        if done and self._export is not None:
            self._gathering.into(self._export, self.stock.course.version, self._stored())
        return done


def _on_cpu(contribution: Contribution) -> Contribution:
    values = {name: value.cpu().contiguous() for name, value in contribution.values.items()}
    return Contribution(
        contribution.participant, contribution.selection, values, contribution.weight, contribution.only
    )
