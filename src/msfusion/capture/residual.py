"""Which axes are residual streams: those that blocks read and write back with an addition."""

from collections.abc import Iterable, Sequence

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
    import networkx  # torch.export has loaded it by now

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
    graph = networkx.from_dict_of_lists(edges, networkx.DiGraph)
    components = networkx.strongly_connected_components(graph)
    cycles = [component & added for component in components if len(component) > 1]
    return {min(cycle, key=lambda leaf: position[leaf]) for cycle in cycles if cycle}


def _free(tensors: Iterable[Labels]) -> dict[Label, None]:
    """Free leaves in order of appearance."""
    found = (leaf for labels in tensors for label in labels for leaf in leaves(label))
    return {leaf: None for leaf in found if leaf.reason is None and leaf.size > 1}
