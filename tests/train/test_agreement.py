"""Several processes stop at the same poll: threads play them, and a dict the store they share."""

import contextlib
import itertools
import threading
import time
import types

import pytest

from train import agreement
from train.agreement import AgreedStop, agreed
from train.signals import StopRequest

COUNT = 3
SECONDS = 20


class Store:
    """As much of the coordination service's client as is asked; it fails once for every key."""

    def __init__(self):
        self._values, self._failed = {}, set()

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite
        if key not in self._failed:
            self._failed.add(key)
            raise RuntimeError("UNAVAILABLE")
        self._values[key] = value

    def key_value_try_get(self, key):
        return self._values[key]

    def key_value_dir_get(self, prefix):
        return [(key, value) for key, value in list(self._values.items()) if key.startswith(prefix)]


@pytest.fixture
def stops(monkeypatch):
    """The agreed request of each process; each has its `own`."""
    monkeypatch.setattr(agreement, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(agreement, "_runs", itertools.repeat(0))
    store, made = Store(), []
    for index in range(COUNT):
        here = types.SimpleNamespace(client=store, process_id=index, num_processes=COUNT)
        monkeypatch.setattr(agreement, "coordination", lambda here=here: here)
        made.append(AgreedStop(StopRequest()))
        made[-1].own = made[-1]._own
    yield made
    for stop in made:
        stop.close()


def poll(stops, pauses, most):
    """Threads that poll at their own speeds, so often at most; their counts of polls made."""
    polls = [0] * COUNT

    def work(index):
        while polls[index] < most[index]:
            polls[index] += 1
            if stops[index]:
                return
            time.sleep(pauses[index])
        stops[index].close()

    threads = [threading.Thread(target=work, args=[index]) for index in range(COUNT)]
    for thread in threads:
        thread.start()
    return threads, polls


def end(threads):
    until = time.monotonic() + SECONDS
    for thread in threads:
        thread.join(max(until - time.monotonic(), 0))
    assert not any(thread.is_alive() for thread in threads), "a process hangs"


@pytest.mark.parametrize("asked", [(0,), (1,), (0, 1, 2)])
def test_all_stop_at_the_same_poll(stops, asked):
    threads, polls = poll(stops, [0.002, 0.004, 0.01], [10**6] * COUNT)
    time.sleep(0.1)
    assert all(thread.is_alive() for thread in threads), "nobody was asked yet"
    for index in asked:
        stops[index].own.signal_name = "SIGTERM"
    end(threads)
    assert polls[0] == polls[1] == polls[2] > 5
    assert [stop.signal_name for stop in stops] == ["SIGTERM"] * COUNT
    assert all(stops), "it stays"


@pytest.mark.parametrize("closes", [0, 2])
def test_one_that_is_at_its_end_keeps_nobody_waiting(stops, closes):
    most = [10**6] * COUNT
    most[closes] = 40
    threads, polls = poll(stops, [0.002] * COUNT, most)
    threads[closes].join(SECONDS)
    other = 2 - closes
    assert polls[closes] == 40 and threads[other].is_alive()
    stops[other].own.signal_name = "SIGINT"
    end(threads)
    assert polls[1] == polls[other] > 40


def test_all_end_without_a_request(stops):
    threads, polls = poll(stops, [0.001, 0.002, 0.003], [20] * COUNT)
    end(threads)
    assert polls == [20] * COUNT
    assert [stop.signal_name for stop in stops] == [None] * COUNT


def test_a_request_in_the_last_moment_hangs_nobody(stops):
    """The first is through before the request comes, the last is in the middle of it."""
    threads, polls = poll(stops, [0.001, 0.005, 0.02], [20] * COUNT)
    threads[0].join(SECONDS)
    stops[2].own.signal_name = "SIGTERM"
    end(threads)
    assert polls == [20] * COUNT, "it came too late for all of them"


@pytest.mark.fast
def test_one_process_agrees_with_itself():
    own = StopRequest()
    with agreed(own) as stop:
        assert stop is own


@pytest.mark.fast
def test_a_request_is_closed_on_the_way_out(stops, monkeypatch):
    monkeypatch.setattr(agreement, "AgreedStop", lambda own: stops[1])
    with contextlib.suppress(ValueError), agreed(StopRequest()):
        raise ValueError
    assert not stops[1]._thread.is_alive()
