"""Who takes part and what arrives: shares, seeds, and contributions that come late."""

import pytest

from msfusion.learn.attendance import Attendance


@pytest.mark.parametrize(("sample", "number"), [(1.0, 10), (0.5, 5), (0.25, 3), (0.01, 1)])
def test_so_many_take_part(sample: float, number: int) -> None:
    rounds = [Attendance(0, sample).present(r, range(10)) for r in range(40)]
    assert {len(present) for present in rounds} == {number}
    assert all(present == sorted(set(present)) for present in rounds)
    assert set().union(*rounds) == set(range(10))


def test_the_sample_follows_from_seed_and_round() -> None:
    drawn = [tuple(Attendance(s, 0.3).present(r, range(10))) for s in (0, 0, 1) for r in range(5)]
    assert drawn[:5] == drawn[5:10] != drawn[10:]
    assert len(set(drawn[:5])) > 1


def test_fates_come_at_their_rates() -> None:
    fates = [Attendance(0, loss_rate=0.2, late_rate=0.3).fate(r, p) for r in range(100) for p in range(20)]
    assert fates.count("lost") == pytest.approx(400, abs=60)
    assert fates.count("late") == pytest.approx(600, abs=60)
    assert {Attendance(0).fate(r, 0) for r in range(50)} == {"on time"}
    assert {Attendance(0, loss_rate=1.0).fate(r, 0) for r in range(50)} == {"lost"}
