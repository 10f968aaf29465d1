"""Ctrl-C waits for a safe point; what else asks to stop is no second one."""

import signal

import pytest

from msfusion.runtimes.interrupt import Stopped, deferred_interrupt, interrupt


def test_the_first_waits_and_the_second_does_not() -> None:
    before = signal.getsignal(signal.SIGINT)
    with deferred_interrupt() as check:
        check()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped):
            check()
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(signal.SIGINT)
        assert not isinstance(caught.value, Stopped)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("pressed", [False, True])
def test_asking_to_stop_from_within_is_never_a_second_one(pressed: bool) -> None:
    with deferred_interrupt() as check:
        if pressed:
            signal.raise_signal(signal.SIGINT)
        for _ in range(3):
            interrupt()
        with pytest.raises(Stopped):
            check()


def test_outside_it_is_an_ordinary_ctrl_c() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start tests without it
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupt()
    finally:
        signal.signal(signal.SIGINT, before)
