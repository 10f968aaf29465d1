"""Who gets which examples: the partitioners of flwr-datasets, by labels."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from msfusion.core.seeds import derive
from msfusion.data.config import Data, Partition
from msfusion.data.source import Indices
from msfusion.errors import UserError

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner

_TRIES = 20
"""DirichletPartitioner itself gives up after 11 draws; each of our tries starts it from another seed."""

_NAMED = 10
"""Most of the classes left out that a warning names."""


def partition(
    labels: Indices, config: Data, participants: int, seed: int, names: Sequence[str] = ()
) -> list[Indices]:
    """The rows of each participant, in random order. The same for the same seed.

    Warns where "pathological" leaves classes out, which it calls by these ``names``.
    ``UserError`` where there are more participants than examples, where one would get fewer than
    ``config.min_examples``, or for "blocks", which divide text."""
    if participants > len(labels):
        raise UserError(
            f"expected at most one participant per example, got {participants} participants for "
            f"{len(labels)} examples: take fewer participants or {_more(config)}"
        )
    kind = config.partition or "dirichlet"
    if kind == "blocks":
        raise UserError(
            "expected data.partition 'iid', 'dirichlet' or 'pathological' for images, got 'blocks', which is "
            "for text: set one of them"
        )
    parts = _with_flower(kind, labels, config, participants, seed)
    _check_sizes(parts, kind, config)
    _tell_left_out(labels, parts, names)
    return parts


def _with_flower(
    kind: Partition, labels: Indices, config: Data, participants: int, seed: int
) -> list[Indices]:
    from datasets import Dataset  # takes seconds to import

    order = np.random.default_rng(derive(seed, "partition order")).permutation(len(labels))
    # IidPartitioner cuts contiguous pieces, so the order of the rows has to be random already.
    rows = Dataset.from_dict({"label": labels[order], "row": order})
    for attempt in range(_TRIES):
        partitioner = _partitioner(kind, config, participants, derive(seed, "partition", attempt) % 2**32)
        partitioner.dataset = rows
        try:
            return _parts(partitioner)
        except ValueError as error:
            if "max number of attempts" not in str(error):
                raise _as_user_error(kind, config, participants, labels) from error
    raise _as_user_error(kind, config, participants, labels)


def _partitioner(kind: Partition, config: Data, participants: int, seed: int) -> "Partitioner":
    from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, PathologicalPartitioner

    if kind == "iid":
        return IidPartitioner(participants)
    if kind == "dirichlet":
        return DirichletPartitioner(
            participants, "label", config.alpha, min_partition_size=config.min_examples, seed=seed
        )
    # The first class of each participant is fixed, so that enough participants leave no class out.
    return PathologicalPartitioner(
        participants,
        "label",
        config.classes_per_participant,
        class_assignment_mode="first-deterministic",
        seed=seed,
    )


def _parts(partitioner: "Partitioner") -> list[Indices]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The specified min_partition_size")  # each redraw says so
        warnings.filterwarnings("ignore", message="Classes: .* will NOT be used")  # said by us
        parts: list[Any] = [
            partitioner.load_partition(i)["row"][:] for i in range(partitioner.num_partitions)
        ]
    return [np.asarray(part, dtype=np.int64) for part in parts]


def _as_user_error(kind: Partition, config: Data, participants: int, labels: Indices) -> UserError:
    classes = len(np.unique(labels))
    if kind == "dirichlet":
        return UserError(
            f"expected at least {_examples(config.min_examples)} per participant, got fewer in every draw of "
            f"{len(labels)} examples for {participants} participants at alpha {config.alpha}: raise "
            f"data.alpha, {_more(config)}, or lower data.min_examples or the number of participants"
        )
    if config.classes_per_participant > classes:
        return UserError(
            f"expected data.classes_per_participant from 1 to {classes}, the number of classes, got "
            f"{config.classes_per_participant}: lower it"
        )
    return UserError(
        f"expected an example of each class for every participant that has it, got {participants} "
        f"participants with {config.classes_per_participant} classes each and {len(labels)} examples of "
        f"{classes} classes: take fewer participants or {_more(config)}"
    )


def _check_sizes(parts: list[Indices], kind: Partition, config: Data) -> None:
    smallest = min(range(len(parts)), key=lambda i: len(parts[i]))
    if len(parts[smallest]) < config.min_examples:
        raise UserError(
            f"expected at least {_examples(config.min_examples)} per participant, got {len(parts[smallest])} "
            f"for participant {smallest} with partition {kind!r}: lower data.min_examples, take fewer "
            f"participants or {_more(config)}"
        )


def _tell_left_out(labels: Indices, parts: list[Indices], names: Sequence[str]) -> None:
    left_out = len(labels) - sum(map(len, parts))
    if not left_out:
        return
    missing = np.setdiff1d(labels, labels[np.concatenate(parts)]).tolist()
    called = [names[number] if number < len(names) else str(number) for number in missing]
    more = f" and {len(called) - _NAMED} more" if len(called) > _NAMED else ""
    warnings.warn(
        f"data.partition 'pathological' leaves out the classes {', '.join(called[:_NAMED])}{more}, which are "
        f"{left_out} of the {len(labels)} training examples and are tested all the same: take more "
        "participants or raise data.classes_per_participant",
        stacklevel=2,
    )


def _examples(number: int) -> str:
    return f"{number} example" if number == 1 else f"{number} examples"


def _more(config: Data) -> str:
    """How there can be more examples."""
    if config.limit is not None:
        return "raise data.limit"
    return "give more data" if config.test_share is None else "lower data.test_share"
