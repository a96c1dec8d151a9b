"""Noticing what arrives while guest code runs: a thread that sleeps.

Between requests, and in recv, the main thread reads the channel itself. While
guest code runs for longer than a moment, this thread waits in poll() instead
and sends the main thread SIGIO when something arrives. A signal from the
kernel for every message (O_ASYNC) was measured too: it doubles the time of a
short exchange; this adds nothing to it.
"""

from __future__ import annotations

import select
from _thread import allocate_lock, start_new_thread
from time import sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal

_MOMENT = 0.01  # seconds


class Watcher:
    """The thread, and what it looks at."""

    def __init__(self, main: int) -> None:
        self.parked = True
        self.reader = 0  # the thread that reads the channel, 0: none
        self.reads = 0  # how many reads there were
        self.fd = -1  # of the channel
        self._main = main
        self._started = False
        self._gate = allocate_lock()
        self._gate.acquire()

    def start(self) -> None:
        """Starts the thread, if it does not run."""
        if self._started:
            return
        self._started = True
        try:
            start_new_thread(self._run, ())
        except RuntimeError:  # no process left for it: interrupts wait for the next read
            self._started = False

    def unpark(self) -> None:
        """Nobody reads any more: watch, from the next moment on."""
        self.parked = False
        if not self._started:
            self.start()
            return
        try:
            self._gate.release()
        except RuntimeError:  # released already
            pass

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        while True:
            before = self.reads
            sleep(_MOMENT)
            if self.reads != before:
                continue
            if self.reader:
                self._park(before)
                continue
            events = poll.poll()
            if events and events[0][1] & select.POLLNVAL:  # the guest has closed the channel
                return
            if not self.reader and self.reads == before:
                _signal.pthread_kill(self._main, _signal.SIGIO)

    def _park(self, before: int) -> None:
        self.parked = True
        if self.reader and self.reads == before:  # else it ended just now, and did not see parked
            self._gate.acquire()
        self.parked = False
