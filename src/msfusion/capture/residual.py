"""Which axes are residual streams: those that blocks read and write back with an addition."""

from collections.abc import Iterable, Mapping, Sequence

from .labels import Label, leaves
from .propagate import Flow
from .rules import Labels


def residual_leaves(flows: Sequence[Flow]) -> set[Label]:
    """Leaves that are residual streams.

    Take the free leaves as nodes and let every operation draw an edge from each leaf that vanishes in it
    (in the labels of its activation inputs, not of its outputs) to each that appears. A block that reads a
    stream and adds to it closes a cycle through its inner axes. The stream is the first leaf of a strongly
    connected component of two or more along which two activations are added: what is added along inside
    blocks (rotary positions, gates) comes later.
    """
    edges: dict[Label, set[Label]] = {}
    order: list[Label] = []
    added: set[Label] = set()
    for flow in flows:
        before, after = _free(flow.inputs), _free(flow.outputs)
        order += [leaf for leaf in after if leaf not in edges]
        for leaf in (*before, *after):
            edges.setdefault(leaf, set())
        for leaf in before:
            edges[leaf].update(other for other in after if other not in before and leaf not in after)
        if flow.adds:
            added.update(after)
    position = {leaf: i for i, leaf in reversed(list(enumerate(order)))}
    cycles = [component & added for component in components(edges) if len(component) > 1]
    return {min(cycle, key=lambda leaf: position[leaf]) for cycle in cycles if cycle}


def _free(tensors: Iterable[Labels]) -> dict[Label, None]:
    """Free leaves in order of appearance."""
    found = (leaf for labels in tensors for label in labels for leaf in leaves(label))
    return {leaf: None for leaf in found if leaf.reason is None and leaf.size > 1}


def components(edges: Mapping[Label, Iterable[Label]]) -> list[set[Label]]:
    """Strongly connected components (Kosaraju), without recursion: graphs are as deep as models."""
    backwards: dict[Label, list[Label]] = {node: [] for node in edges}
    for node, targets in edges.items():
        for target in targets:
            backwards[target].append(node)
    finished: list[Label] = []
    seen: set[Label] = set()
    for node in edges:
        finished += _finishing_order(node, edges, seen)
    seen = set()
    found = (set(_finishing_order(node, backwards, seen)) for node in reversed(finished))
    return [component for component in found if component]


def _finishing_order(start: Label, edges: Mapping[Label, Iterable[Label]], seen: set[Label]) -> list[Label]:
    """Nodes reachable from ``start`` and not seen before, each after all that it reaches."""
    if start in seen:
        return []
    seen.add(start)
    out: list[Label] = []
    stack = [(start, iter(edges[start]))]
    while stack:
        node, targets = stack[-1]
        fresh = next((t for t in targets if t not in seen), None)
        if fresh is None:
            out.append(node)
            stack.pop()
        else:
            seen.add(fresh)
            stack.append((fresh, iter(edges[fresh])))
    return out
