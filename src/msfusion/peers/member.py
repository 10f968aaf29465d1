"""What a peer does for the group while its own training goes on: agree who is here, keep shards, merge.

Every step looks at what is known of everyone and at the disk, does the next thing, and is over; nothing is
remembered that the next step could not see again. So it does not matter when a peer dies or comes back.
"""

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from msfusion.core.axes import Selection
from msfusion.learn.steps import server_step
from msfusion.peers import agreement
from msfusion.peers.board import Board
from msfusion.peers.histories import Histories
from msfusion.peers.lead import Lead
from msfusion.peers.network import Network
from msfusion.peers.past import History
from msfusion.peers.pieces import Wanted
from msfusion.peers.points import reached
from msfusion.peers.settings import Peers
from msfusion.peers.states import Decision, Offer, States, Version, View
from msfusion.peers.stock import Stock
from msfusion.peers.strip import Strip
from msfusion.peers.tasks import Tasks
from msfusion.peers.teller import Teller
from msfusion.runtimes.run import Run


class Member:
    """The thread that takes part.

    participants: how many there are in the run.
    expected: round -> participants whose contributions belong into it.
    tell: tells the user what happened to the group.
    """

    def __init__(
        self,
        run: Run,
        peers: Peers,
        participants: int,
        expected: Callable[[int], list[int]],
        stock: Stock,
        board: Board,
        tell: Teller,
    ) -> None:
        self._run, self._peers, self._participants = run, peers, participants
        self._layout, self._disk = stock.layout, stock.disk
        self._course, self._home = stock.course, stock.home
        self._board, self._tell = board, tell
        self._lead = Lead(run, peers, expected, board, self._tell)
        self._tasks = Tasks(board.wake)
        self._stop = threading.Event()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def start(self, network: Network) -> None:
        """Take part from now on."""
        self._network = network
        self._histories = Histories(
            self._disk,
            self._board,
            network,
            len(self._layout),
            self._participants,
            measured=self._run.adapt.measures,
        )
        self._thread.start()

    def stop(self) -> None:
        """Take part no longer."""
        self._stop.set()
        self._board.wake()
        self._thread.join(timeout=10)

    def sources(self, version: Version, shard: int) -> list[int]:
        """Others who hold a shard of a version, its home first."""
        states, view = self._board.here(), self._board.own.view
        own = self._board.own.number
        have = [n for n, state in states.items() if n != own and shard in agreement.held(state, version)]
        if view is None:
            return have
        order = self._holders(view)[shard]
        return sorted(have, key=lambda n: (order.index(n) if n in order else len(order), n))

    def _loop(self) -> None:
        try:
            while not self._stop.is_set():
                news = self._board.news
                self._tasks.check()
                if not self._step():
                    self._board.pause(news, 0.1)
        except BaseException as error:
            self.error = error
            self._board.wake()

    def _step(self) -> bool:
        """Do the next thing; whether there may be more to do at once."""
        states, own = self._board.here(), self._board.own
        if agreement.overruled(own, states):
            self._board.update(view=None, decision=None, checks={})
            return True
        view = agreement.adopted(own, states)
        if view is not None and view != own.view:
            return self._follow(view)
        if view is None or agreement.broken(view, states):
            return self._propose(states, view)
        if own.number == view.lead and self._lead.renews(view, states):
            return self._propose(states, view)
        return self._play(view, states)

    def _holders(self, view: View) -> list[tuple[int, ...]]:
        return agreement.holders_of(view, len(self._layout), self._peers.replicas)

    # --- who is here

    def _propose(self, states: States, view: View | None) -> bool:
        own = self._board.own
        if agreement.proposer(states) != own.number:
            return False
        base, missing = agreement.newest(states, len(self._layout))
        if not self._may_begin(states, view, base):
            return False
        if missing:
            if not own.done:  # a peer that waits for the last others needs no shards
                self._tell.missing(base, sorted(missing))
            return False
        members = {
            n: s.session for n, s in states.items() if n == own.number or not self._lead.sits_out(n, base)
        }
        known = [s.view.epoch for s in (*self._board.last().values(), *states.values()) if s.view]
        return self._follow(View(max(known, default=0) + 1, own.number, members, base))

    def _may_begin(self, states: States, view: View | None, base: Version) -> bool:
        """A run begins when enough are here, and one that goes on looks for the others for a while."""
        if base.round == 0:
            start = self._peers.start or self._participants
            begins = agreement.may_begin(states, self._board.last(), start)
            if not begins and agreement.newest_view(states) is None and len(states) < start:
                self._tell.waiting(len(states), start)
            elif not begins:
                self._tell.begun(agreement.begun_with(states, self._board.last()))
            return begins
        settled = time.monotonic() - self._board.started > self._peers.settle
        return view is not None or settled or len(states) == self._participants

    def _follow(self, view: View) -> bool:
        own = self._board.own
        history = self._histories.of(view.base)
        if history is None:
            return False
        if view.base != own.at or own.view is None:
            self._home.clear()
        self._course.go(view.base, history, self._disk.past)
        self._disk.discard_after(view.base)
        with self._board.changed:
            offer = self._board.own.offer
            keeps = offer is not None and offer.version == view.base
            self._board.update(
                view=view,
                at=view.base,
                offer=offer if keeps else None,
                checks={},
                decision=None,
                holds=self._disk.holds(),
            )
        self._tell.going_on(view)
        return True

    # --- a round

    def _play(self, view: View, states: States) -> bool:
        own, holders = self._board.own, self._holders(view)
        duty = agreement.duties(holders, view.members)[own.number]
        missing = duty - agreement.held(own, own.at)
        if missing:
            self._tasks.start(("place", own.at, view.id), lambda: self._place(view, own.at, missing))
        if own.at != own.committed and self._complete(view, own.at, states, holders):
            return self._commit(own.at)
        if own.number == view.lead:
            outcome = self._lead.act(view, states, holders)
            if outcome == "decided" or (outcome == "leaves behind" and self._propose(states, view)):
                return True
        if decided := agreement.decided(view, own.at, states[view.lead]):
            return self._merge(view, states, holders, decided)
        homes = {shard for shard, own_holders in enumerate(holders) if own_holders[0] == own.number}
        return not missing and own.at.round < self._run.rounds and self._collect(view, states, homes)

    def _place(self, view: View, version: Version, shards: set[int]) -> None:
        """Get shards that this peer should hold from those who have them."""
        history = self._histories.of(version)
        if history is None:
            return
        for shard in sorted(shards):
            self._copy(view, version, shard, history)

    def _copy(self, view: View, version: Version, shard: int, history: History) -> None:
        def fill(new: Mapping[str, Tensor]) -> None:
            strip = Strip(new[name] for name in self._layout.specs(shard))
            wanted = Wanted(lambda: self.sources(version, shard), f"file/{version.text}/{shard}", strip)
            self._network.fetch([wanted], lambda: self._stands(view))

        if not self._disk.has(version, shard):
            shift = agreement.shift_of(version, self._board.here(), shard)
            self._disk.write(version, shard, history, fill, shift)
        self._publish()

    def _publish(self, **changes: object) -> None:
        """Say what the disk holds now; looked up under the lock, so that the last to look speaks last."""
        with self._board.changed:
            self._board.update(holds=self._disk.holds(), **changes)

    def _stands(self, view: View) -> bool:
        now = self._board.own.view
        return now is not None and now.id == view.id and not self._stop.is_set()

    def _complete(self, view: View, version: Version, states: States, holders: list[tuple[int, ...]]) -> bool:
        """Whether every shard of a version lies where it should, or another member has seen that it does."""
        duty = agreement.duties(holders, view.members)
        return any(states[n].committed == version for n in view.members) or all(
            duty[n] <= agreement.held(states[n], version) for n in view.members
        )

    def _commit(self, version: Version) -> bool:
        self._disk.commit(version)
        self._publish(committed=version)
        reached("commit", version.round - 1)
        return True

    def _collect(self, view: View, states: States, homes: set[int]) -> bool:
        """Fetch what others contribute to one's own shards, and say what was found in it."""
        own = self._board.own
        for n, offer in agreement.offers(view, own.at, states).items():
            if self._home.missing(offer, homes):
                self._tasks.start(
                    ("given", offer.given.digest, view.id), partial(self._fetch, view, offer, homes)
                )
            elif n not in own.checks or own.checks[n].digest != offer.given.digest:
                self._board.update(checks={**self._board.own.checks, n: self._home.check(offer, homes)})
        return False

    def _fetch(self, view: View, offer: Offer, homes: set[int]) -> None:
        n, digest = offer.given.participant, offer.given.digest
        selection = self._course.windows(offer.version, n)
        if selection is None:
            return
        shards = self._home.missing(offer, homes)
        if n == self._board.own.number:
            rooms = {shard: own for shard in shards if (own := self._home.own(digest, shard)) is not None}
        else:
            rooms = {shard: self._home.room(shard, selection) for shard in shards}
            wanted = [Wanted(lambda: [n], f"given/{digest}/{s}", Strip(room)) for s, room in rooms.items()]
            self._network.fetch(wanted, lambda: self._stands(view) and self._offers(offer))
        for shard, values in rooms.items() if self._offers(offer) else ():
            self._home.take_in(offer, shard, selection, values)

    def _offers(self, offer: Offer) -> bool:
        state = self._board.here().get(offer.given.participant)
        return state is not None and state.offer == offer and self._board.own.at == offer.version

    def _merge(self, view: View, states: States, holders: list[tuple[int, ...]], decision: Decision) -> bool:
        """Write the next version of one's shards: merged at home, copied where one is the replica."""
        own = self._board.own
        target = agreement.following(own.at, decision.entry)
        history = self._disk.following(own.at, decision.entry)
        offered = agreement.offers(view, own.at, states)
        for shard, order in enumerate(holders):
            if own.number not in order or self._disk.has(target, shard):
                continue
            if order[0] != own.number:
                if not self.sources(target, shard):
                    continue
                self._tasks.start(
                    ("copy", target, shard, view.id), partial(self._copy, view, target, shard, history)
                )
            elif self._has_all(decision, shard, offered):
                windows = {g.participant: self._windows(own.at, g.participant) for g in decision.entry.given}
                step = server_step(self._run.server_step, own.at.round, self._run.rounds)
                self._home.merge(decision, shard, offered, windows.__getitem__, step, history)
                self._publish()
        states = self._board.here()
        if agreement.broken(view, states):
            return True
        if not self._complete(view, target, states, holders):
            return False
        whole = self._histories.whole(target, history, states) or self._histories.of(target)
        if whole is None:
            return False
        self._disk.remember(target, whole)
        self._advance(target, whole)
        return True

    def _has_all(self, decision: Decision, shard: int, offered: Mapping[int, Offer]) -> bool:
        """Whether what is to be merged is still on offer, and its part of a shard is here."""
        offers = [(offered.get(given.participant), given) for given in decision.entry.given]
        return all(
            offer is not None and offer.given == given and not self._home.missing(offer, [shard])
            for offer, given in offers
        )

    def _advance(self, target: Version, history: History) -> None:
        """Commit and go on, at once: between the two, a view could be formed that goes back behind it."""
        self._disk.commit(target)
        self._course.go(target, history, self._disk.past)
        self._home.clear()
        self._publish(at=target, committed=target, offer=None, checks={})
        reached("commit", target.round - 1)

    def _windows(self, version: Version, participant: int) -> Selection:
        windows = self._course.windows(version, participant)
        assert windows is not None
        return windows
