"""Which peers keep which shard: rendezvous hashing with bounded loads, a pure function of who is here."""

from collections.abc import Sequence

from msfusion.core.seeds import derive


def place(shards: int, members: Sequence[int], replicas: int) -> list[tuple[int, ...]]:
    """Holders of every shard, its home first, then its replicas, as many as there are members for.

    Every peer ranks the members for each shard by hash and takes the first that is not full, so loads differ
    by one at most where that is possible, and most shards stay where they are when members come or go.
    """
    ranked = [sorted(members, key=lambda m: (-derive(0, "home", shard, m), m)) for shard in range(shards)]
    full = -(-shards // len(members))
    holders: list[tuple[int, ...]] = [() for _ in range(shards)]
    for _ in range(min(1 + replicas, len(members))):
        load = dict.fromkeys(members, 0)
        for shard, order in enumerate(ranked):
            others = [m for m in order if m not in holders[shard]]
            chosen = next((m for m in others if load[m] < full), others[0])
            load[chosen] += 1
            holders[shard] = (*holders[shard], chosen)
    return holders
