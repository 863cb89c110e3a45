"""Ctrl-C and SIGTERM: ask the loop to save and stop, at its next safe moment."""

import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_SAME_SECONDS = 0.5
"""Signals closer than this are one: wrappers such as `timeout` send theirs twice."""

_SHOW_CURSOR = "\x1b[?25h"
"""Progress bars hide it."""


class StopRequest:
    """A flag that the loop polls; `signal_name` says what raised it."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def __bool__(self) -> bool:
        return self.signal_name is not None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request; a second Ctrl-C ends the program at once.

    A thread reads the signals, for Python's own handlers would wait while a program is compiled.
    Repeated SIGTERMs are one request: some process managers send it twice. Python can only set
    handlers in the main thread; elsewhere the request stays unset.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    receiver, sender = socket.socketpair()
    sender.setblocking(False)

    def watch() -> None:
        asked = -math.inf
        while number := receiver.recv(1)[0]:
            if number not in before:
                continue
            if request.signal_name is None:
                request.signal_name, asked = signal.Signals(number).name, time.monotonic()
                _say(f"\n{request.signal_name}: stopping, once saved; Ctrl-C again ends at once\n")
            elif number == signal.SIGINT and time.monotonic() - asked > _SAME_SECONDS:
                if os.isatty(2):
                    _say(_SHOW_CURSOR)
                os._exit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    wakeup = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    for number in before:
        signal.signal(number, _leave_to_thread)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        sender.send(b"\0")
        thread.join()
        sender.close()
        receiver.close()


def _leave_to_thread(number: int, frame: FrameType | None) -> None:
    del number, frame


def _say(text: str) -> None:
    """Write past Python's and Rich's locks, which the main thread may hold."""
    with suppress(OSError):
        os.write(2, text.encode())
