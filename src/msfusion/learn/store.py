"""Where the full model's values live between rounds."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from msfusion.core.axes import AxisMap, Selection
from msfusion.core.cut import Cuts
from msfusion.core.merge import Contribution, Merge, Shift, extract
from msfusion.core.momentum import Momentum
from msfusion.core.twins import Twins


class Store(Protocol):
    """Pull a sub-model, push a contribution, commit a round."""

    def pull(
        self, participant: int, selection: Selection, into: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Copies of the values of a sub-model, parameters and buffers.

        into: tensors to copy them to, by default new ones.
        """
        ...

    def push(self, contribution: Contribution) -> None:
        """Take in a contribution; raises UserError, and takes nothing of it, where it is not acceptable. Its
        values may be overwritten afterwards."""
        ...

    def commit(self, step: float) -> Shift | None:
        """Merge what was pushed since the last commit into the full model, by ``step`` of the change; returns
        how far it lay apart, if that is measured."""
        ...

    def discard(self) -> None:
        """Forget what was pushed since the last commit."""
        ...

    def state(self) -> Mapping[str, Tensor]:
        """Every tensor that a checkpoint must hold."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved ``state``."""
        ...


class MemoryStore:
    """The full model in this process's memory.

    values: parameter and buffer name -> tensor; changed in place by ``commit``.
    parameters: which of them participants train.
    measure: whether the model shift is measured.
    twins: units that share their changes.
    momentum: what makes the full model go on as it has been moving; its state is not the store's.
    whole: whether all of the values are of one round, as they are not after a commit that failed.
    """

    whole = True

    def __init__(
        self,
        values: Mapping[str, Tensor],
        axes: AxisMap,
        parameters: frozenset[str],
        *,
        measure: bool = False,
        twins: Twins | None = None,
        momentum: Momentum | None = None,
    ) -> None:
        self._momentum = momentum
        self._measure = measure
        self._twins = twins
        self._values = values
        self._axes = axes
        self._cuts = Cuts(axes)
        self._parameters = parameters
        self.discard()

    def pull(
        self, participant: int, selection: Selection, into: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        return extract(self._values, self._axes, selection, into=into, cuts=self._cuts)

    def push(self, contribution: Contribution) -> None:
        self._merge.add(contribution)

    def commit(self, step: float) -> Shift | None:
        shift = self._merge.shift()
        self.whole = False
        self._merge.apply(step, self._momentum)
        self.whole = True
        return shift

    def discard(self) -> None:
        trained = {name: self._values[name] for name in sorted(self._parameters)}
        self._merge = Merge(trained, self._axes, measure=self._measure, cuts=self._cuts, twins=self._twins)

    def state(self) -> Mapping[str, Tensor]:
        return self._values

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for name, value in self._values.items():
            value.copy_(state[name])


class OwnStore(MemoryStore):
    """A sub-model for each participant and no exchange between them (stand-alone training)."""

    def __init__(self, values: Mapping[str, Tensor], axes: AxisMap, parameters: frozenset[str]) -> None:
        super().__init__(values, axes, parameters)
        self._own: dict[str, Tensor] = {}
        self._pushed: dict[str, Tensor] = {}

    def pull(
        self, participant: int, selection: Selection, into: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        values = super().pull(participant, selection, into)
        for name, value in values.items():
            own = self._own.get(f"{participant}/{name}")
            if own is not None:
                value.copy_(own)
        return values

    def push(self, contribution: Contribution) -> None:
        self._merge.check(contribution)
        for name, value in contribution.values.items():
            self._pushed[f"{contribution.participant}/{name}"] = value.clone()

    def commit(self, step: float) -> None:
        self._own |= self._pushed
        self._pushed = {}

    def discard(self) -> None:
        super().discard()
        self._pushed = {}

    def state(self) -> Mapping[str, Tensor]:
        return {**self._values, **{f"own/{name}": value for name, value in self._own.items()}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        super().restore(state)
        device = next(iter(self._values.values())).device
        own = {
            name.removeprefix("own/"): t.to(device) for name, t in state.items() if name.startswith("own/")
        }
        self._own = own
