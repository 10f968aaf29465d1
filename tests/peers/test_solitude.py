"""Whoever hears nobody says so once, and whoever does never."""

from msfusion.peers.solitude import Solitude


def test_it_is_told_once_without_a_link_and_once_with_one() -> None:
    solitude = Solitude(wait=10.0)
    assert not solitude.overdue(False, 100.0)
    assert not solitude.overdue(False, 109.0)
    assert solitude.overdue(False, 110.0)
    assert not solitude.overdue(False, 130.0)
    assert not solitude.overdue(True, 140.0)  # a link has just come, and tokens follow
    assert solitude.overdue(True, 150.0)
    assert not solitude.overdue(True, 170.0)
    assert not any(solitude.overdue(False, now) for now in (180.0, 200.0))


def test_it_ends_when_somebody_is_heard() -> None:
    solitude = Solitude(wait=10.0)
    assert not solitude.overdue(False, 100.0)
    solitude.end()
    assert not solitude.overdue(False, 200.0)
