"""How a run is stopped: by signals to one process or to one of its ranks, at the same step on all of them."""

import pickle
import signal
import threading
from contextlib import suppress

import pytest

from rst.experiments.training import signals
from rst.experiments.training.ranks import ALONE, World
from rst.experiments.training.signals import Interrupted, StopPoll, stop_requests

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

# ------------------------------------------------------------------------------------------------------------- requests


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_is_a_request_to_stop(number: signal.Signals) -> None:
    requests: list[int] = []
    with stop_requests(requests.append):
        signal.raise_signal(number)
    assert requests == [number]


def test_the_handlers_of_the_process_are_put_back() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    with suppress(ZeroDivisionError), stop_requests(lambda number: None):
        assert [signal.getsignal(number) for number in NUMBERS] != before
        signal.raise_signal(signal.SIGTERM)
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_signals_that_come_within_a_second_are_one_request() -> None:
    """As those of Ctrl-C, which come from the terminal and from the launcher."""
    requests: list[int] = []
    with stop_requests(requests.append):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert requests == [signal.SIGINT]


def test_a_second_request_does_what_the_signal_would_do_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "ONE_REQUEST", 0.0)
    requests: list[int] = []
    with stop_requests(requests.append):
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert requests == [signal.SIGTERM]


def test_outside_the_main_thread_nothing_changes() -> None:
    """Only a main thread may set handlers."""
    before, inside = [signal.getsignal(number) for number in NUMBERS], []

    def body() -> None:
        with stop_requests(lambda number: None):
            inside.extend(signal.getsignal(number) for number in NUMBERS)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert inside == before


def test_an_interruption_reaches_another_process_with_its_sentence_and_its_signal() -> None:
    stop = pickle.loads(pickle.dumps(Interrupted("stopped at step 4.", signal.SIGTERM)))
    assert (str(stop), stop.signal_number) == ("stopped at step 4.", signal.SIGTERM)


# ----------------------------------------------------------------------------------------------- looks at the same step


class Two(World):
    """A rank, and another whose values are given."""

    size = 2

    def __init__(self, *others: float) -> None:
        self.others = others

    def max(self, *values: float) -> list[float]:
        return [max(pair) for pair in zip(values, self.others, strict=True)]


def test_ranks_look_up_together_after_the_fewest_steps_that_any_of_them_proposes():
    poll = StopPoll(Two(0, -3), step=10)
    assert [poll.is_due(step) for step in (10, 11)] == [False, True]
    assert poll.look(11) == 0
    assert [poll.is_due(step) for step in (12, 13, 14)] == [False, False, True]


def test_a_signal_to_one_rank_is_seen_by_all_when_they_look_and_not_before():
    poll = StopPoll(Two(15, -3), step=0)
    poll.requests.append(2)
    assert not poll.is_due(0)
    assert poll.look(1) == 15


def test_alone_a_signal_is_seen_after_the_step_in_which_it_comes():
    poll = StopPoll(ALONE, step=0)
    assert not poll.is_due(1)
    poll.requests.append(2)
    assert poll.is_due(1)
    assert poll.look(1) == 2
