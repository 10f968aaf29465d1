"""Which contributions change the model so much more than the others that they are not merged."""

import statistics
from collections.abc import Mapping


def too_large(changes: Mapping[int, float], bound: float) -> dict[int, str]:
    """Participant -> why it is left out, for every change above ``bound`` times the median of the others';
    with fewer than two others there is nothing to compare with.

    changes: of each participant, the root mean square: a mean, as sub-models may differ in width.
    """
    reasons = {}
    for number, change in changes.items():
        others = [other for another, other in changes.items() if another != number]
        median = statistics.median(others) if len(others) > 1 else 0.0
        if median and change > bound * median:
            reasons[number] = f"change {change / median:.0f} times as large as the others'"
    return reasons
