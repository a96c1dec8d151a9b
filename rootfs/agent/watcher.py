"""Noticing what arrives while guest code runs: a signal of the kernel's, later a thread that sleeps.

Between requests, and in recv, the main thread reads the channel itself. While guest code
runs, the main thread is sent SIGIO when something arrives: by the kernel (O_ASYNC) after the
first reads, because most guests end after one or two, and a thread costs each of them some
35 page faults. But a signal for every message doubles the time of a short
exchange. So who goes on reading gets a thread, which waits in poll() once guest code has run
for longer than a moment, and adds nothing to an exchange. Pipes have it from the start.
"""

from __future__ import annotations

import fcntl
import posix
import select
from _thread import allocate_lock, start_new_thread
from time import sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal

_MOMENT = 0.01  # seconds
_SIGNALS = 32  # reads after which the kernel looks out


class Watcher:
    """Who looks out, and at what."""

    def __init__(self, main: int) -> None:
        self.parked = True  # nobody looks out
        self.armed = False  # the kernel does
        self.reader = 0  # the thread that reads the channel, 0: none
        self.reads = 0  # how many reads there were
        self._fd = -1  # of the channel
        self._left = 0  # reads after which the kernel shall look out
        self._owned = False  # it knows whom to tell
        self._main = main
        self._started = False
        self._gate = allocate_lock()
        self._gate.acquire()

    def look_at(self, fd: int, socket: bool) -> None:
        """Takes the channel's descriptor."""
        self._fd = fd
        self._left = _SIGNALS if socket else 0

    def unpark(self) -> None:
        """Nobody reads any more: look out."""
        if self._left:
            self._left -= 1
            self._arm()
            return
        self.parked = False
        if not self._started:
            self._start()
            return
        try:
            self._gate.release()
        except RuntimeError:  # released already
            pass

    def disarm(self) -> None:
        """Somebody reads."""
        self.armed = False
        try:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, posix.O_RDWR)
        except OSError:  # the guest has closed the channel: who reads finds out
            pass

    def _arm(self) -> None:
        try:
            if not self._owned:
                fcntl.fcntl(self._fd, fcntl.F_SETOWN, posix.getpid())
                self._owned = True
            fcntl.fcntl(self._fd, fcntl.F_SETFL, posix.O_RDWR | fcntl.FASYNC)
            self.armed = True
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            came = poll.poll(0)
        except OSError:  # the guest has closed the channel
            return
        if came:  # just before
            _signal.pthread_kill(self._main, _signal.SIGIO)

    def _start(self) -> None:
        self._started = True
        try:
            start_new_thread(self._run, ())
        except RuntimeError:  # no process left for it
            self._started, self.parked = False, True

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
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
