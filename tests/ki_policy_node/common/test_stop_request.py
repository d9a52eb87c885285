"""Signals that are held come when the work is whole, and none is lost."""

from __future__ import annotations

import signal
import threading

import pytest

from ki_policy_node.common.stop_request import held_signals


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_held_does_at_the_end_what_it_would_have_done(number: int) -> None:
    done: list[str] = []

    def stop(number, frame):
        done.append('signal')
        raise KeyboardInterrupt

    def work() -> None:
        with held_signals():
            signal.raise_signal(number)
            done.append('work')

    before = signal.signal(number, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
        assert done == ['work', 'signal']
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)


def test_a_signal_is_not_lost_where_the_work_fails() -> None:
    def fail() -> None:
        with held_signals():
            signal.raise_signal(signal.SIGINT)
            raise ValueError('broken')

    with pytest.raises(KeyboardInterrupt) as caught:
        fail()
    assert isinstance(caught.value.__context__, ValueError)


def test_work_of_other_threads_goes_on_as_ever() -> None:
    handlers = []

    def work() -> None:
        with held_signals():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]
