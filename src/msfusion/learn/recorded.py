"""Local training of several participants at once on a GPU, by steps recorded as CUDA graphs.

A step of a small sub-model is some hundred short kernels, which a GPU finishes before Python has asked for
the next ones. Recorded once, a step is a single launch; participants have a stream each, so theirs run side
by side, while the host pulls the next sub-model or merges the last. The kernels are those of training one by
one: the result is the same to the bit. Nothing is recorded again when windows move.

What a model does on the host is recorded once: draws there are noticed and refused, but a counter of its own
in Python would stand still.
"""

import gc
import random
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from msfusion.capture.graph import named_tensors
from msfusion.core.axes import Widths
from msfusion.core.scale import Factor, rounded, scale_, undo_
from msfusion.core.seeds import derive
from msfusion.data import fetch
from msfusion.learn.local import Train, batches, cuda_generator, make_optimizer, seeded, update
from msfusion.learn.objective import Objective
from msfusion.learn.submodels import Plan, SubModels, compiler, plan_of, trained_names
from msfusion.learn.ways import Group, Trained, Unbatchable

_WARM_UP = 3  # steps before one is recorded: libraries choose their kernels, the optimizer makes its state


@dataclass(frozen=True)
class Recording:
    """A step, and where it reads its batch."""

    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    targets: Tensor


class Slot:
    """Room on a GPU for one sub-model that trains, whichever window it is of.

    module: of the width plan; its tensors are where values are put and trained.
    factors: of the scale rule, by parameter.
    rates: what learning rates are multiplied by, by parameter.
    """

    def __init__(
        self,
        module: nn.Module,
        factors: Mapping[str, Factor],
        rates: Mapping[str, float],
        objective: Objective,
        config: Train,
    ) -> None:
        self.tensors = {name: tensor.detach() for name, tensor in named_tensors(module).items()}
        self._module, self._objective, self._config = module.train(), objective, config
        self._factors, self._rounded = factors, rounded(factors)
        self._optimizer = make_optimizer(module, config, config.lr, rates)
        self._device = next(iter(self.tensors.values())).device
        self._loss = torch.zeros((), device=self._device)
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._generator = cuda_generator(self._device).clone_state()
        self._recordings: dict[int, Recording] = {}  # by examples in a batch

    @property
    def values(self) -> dict[str, Tensor]:
        """The parameters that want a gradient."""
        return {name: self.tensors[name] for name in trained_names(self._module)}

    def knows(self, size: int) -> bool:
        """Whether a step on batches of so many examples is recorded."""
        return size in self._recordings

    def record(self, inputs: Tensor, targets: Tensor) -> None:
        """Record a step on batches like this one; the values, which have to be some, stay as they are.

        Raises Unbatchable where a step cannot be recorded.
        """
        if not isinstance(self._optimizer.lr, Tensor):
            raise Unbatchable("its parameters have a type without a fused optimizer")
        recording = Recording(torch.cuda.CUDAGraph(), inputs.clone(), targets.clone())
        before = {name: tensor.clone() for name, tensor in self.tensors.items()}
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with self._drawing(), torch.cuda.stream(self._stream):
            for _ in range(_WARM_UP):
                self._step(recording.inputs, recording.targets)
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()  # a recording cannot use what the warm-up has left
            with _unrepeated_draws():
                self._capture(recording)
            for name, tensor in before.items():
                self.tensors[name].copy_(tensor)
        torch.cuda.synchronize(self._device)
        self._recordings[len(inputs)] = recording

    def start(self, drawn: Iterable[tuple[Tensor, Tensor]], lr: float, seed: int) -> None:
        """Train on the batches; the device does so while the host goes on."""
        self._generator.manual_seed(derive(seed, "torch"))
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            self._loss.zero_()
            self._optimizer.start_again(lr)
            scale_(self.tensors, self._factors)
        for inputs, targets in drawn:  # fetched on the stream of the caller, which waits for no training
            self._stream.wait_stream(here)
            with torch.cuda.stream(self._stream):
                self._train(inputs, targets)
                for part in (inputs, targets):
                    part.record_stream(self._stream)

    def finish(self, fill: Callable[[Mapping[str, Tensor]], None]) -> float:
        """Wait for what was started; the sum of the losses of its steps.

        fill: puts the values that it started from into tensors like its own.
        """
        given: dict[str, Tensor] = {}
        if self._rounded:
            given = {name: torch.empty_like(tensor) for name, tensor in self.tensors.items()}
            fill(given)
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            undo_(self.tensors, self._factors, given, self._rounded)
            return float(self._loss)

    def leave(self) -> None:
        """Let what the caller's stream does next, as with memory that is freed, come after what was
        started."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def _train(self, inputs: Tensor, targets: Tensor) -> None:
        recording = self._recordings.get(len(inputs))
        if recording is None or not (
            _alike(inputs, recording.inputs) and _alike(targets, recording.targets)
        ):  # of a dataset whose examples differ in shape
            with self._drawing():
                self._step(inputs, targets)
            return
        recording.inputs.copy_(inputs)
        recording.targets.copy_(targets)
        recording.graph.replay()

    def _step(self, inputs: Tensor, targets: Tensor) -> None:
        args = self._module, self._optimizer, self._objective, self._config
        self._loss += update(*args, inputs, targets)

    def _capture(self, recording: Recording) -> None:
        recording.graph.capture_begin()
        try:
            try:
                self._step(recording.inputs, recording.targets)
            finally:
                recording.graph.capture_end()  # after a failed step it fails too
        except RuntimeError as error:
            reason = str(error.__context__ or error).strip().splitlines()[0]
            raise Unbatchable(f"a step cannot be recorded ({reason})") from None

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Where the device draws from the slot's own generator: recordings that run at once cannot share
        one."""
        shared = cuda_generator(self._device)
        before = shared.graphsafe_get_state()
        shared.graphsafe_set_state(self._generator)
        try:
            yield
        finally:
            shared.graphsafe_set_state(before)


@dataclass
class Slots:
    """Trains participants of any shapes at once on a GPU.

    compiled: what is recorded is compiled first, for each width plan and shape of a batch.
    """

    submodels: SubModels
    compiled: bool = False
    least = 1
    mixes = True
    _slots: dict[Plan, list[Slot]] = field(default_factory=dict)

    def train(self, group: Group) -> Generator[Trained]:
        try:
            slots = self._assigned(group)
            self._record(slots, group)
        except torch.OutOfMemoryError:
            raise Unbatchable("the GPU's memory is too small for it") from None
        return self._finished(slots, self._started(slots, group), group)

    def _started(self, slots: Sequence[Slot], group: Group) -> ExitStack:
        """Start all; what is returned lets the caller's stream come after them when it is closed."""
        steps, size = group.config.steps, group.config.batch
        with ExitStack() as started:
            for place, (slot, own, seed) in enumerate(zip(slots, group.data, group.seeds, strict=True)):
                group.fill(place, slot.tensors)
                drawn = batches(own, size, steps, seed)
                started.callback(slot.leave)
                with seeded(seed, torch.device("cpu")):  # datasets may draw from it
                    slot.start(((x.to(self._device), y.to(self._device)) for x, y in drawn), group.lr, seed)
            return started.pop_all()

    def _finished(self, slots: Sequence[Slot], started: ExitStack, group: Group) -> Generator[Trained]:
        steps = group.config.steps
        with started:
            for place, slot in enumerate(slots):
                yield slot.values, slot.finish(partial(group.fill, place)) / steps

    def forget(self) -> None:
        self._slots.clear()

    @property
    def _device(self) -> torch.device:
        return self.submodels.device

    def _assigned(self, group: Group) -> list[Slot]:
        """A slot of its own for each."""
        used: Counter[Plan] = Counter()
        assigned = []
        for own in group.widths:
            plan = plan_of(own)
            slots = self._slots.setdefault(plan, [])
            if used[plan] == len(slots):
                slots.append(self._slot(own, group.objective, group.config))
            assigned.append(slots[used[plan]])
            used[plan] += 1
        return assigned

    def _slot(self, widths: Widths, objective: Objective, config: Train) -> Slot:
        module = self.submodels.module(widths)
        if self.compiled:
            module.compile(backend=compiler(), dynamic=False)
        rates = self.submodels.rates(widths, config)
        return Slot(module, self.submodels.factors(widths), rates, objective, config)

    def _record(self, slots: Sequence[Slot], group: Group) -> None:
        """See that each slot knows steps on batches like those of its data."""
        sizes = [min(group.config.batch, len(own)) for own in group.data]  # type: ignore[arg-type]
        new = [place for place, size in enumerate(sizes) if not slots[place].knows(size)]
        if new:
            gc.collect()  # a recording that is freed while another is made would spoil it
        for place in new:
            group.fill(place, slots[place].tensors)
            with seeded(0, torch.device("cpu")):
                batch = fetch(group.data[place], torch.arange(sizes[place]), None)
                slots[place].record(*(part.to(self._device) for part in batch))


def _alike(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and first.dtype == second.dtype


@contextmanager
def _unrepeated_draws() -> Iterator[None]:
    """Raises Unbatchable if the body draws random numbers on the host: a recording would repeat them."""
    before = _host_states()
    yield
    if _host_states() != before:
        raise Unbatchable("it draws random numbers on the CPU, which a recorded step would repeat")


def _host_states() -> tuple[object, ...]:
    numpy = np.random.get_state(legacy=False)["state"]
    own = torch.default_generator.get_state().numpy().tobytes()
    return own, random.getstate(), numpy["key"].tobytes(), numpy["pos"]
