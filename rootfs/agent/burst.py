"""Who sends the last posts of a burst: a thread that ticks while there is one.

The writer lets short posts wait for each other once many have come within a tick. This
thread sends what waits at every tick, and goes to sleep when a tick saw no post; the next ones
then go at once again. It needs the interpreter to do so: code that computes keeps it for
some milliseconds, C code that does not let go of it for as long as it likes.
"""

from __future__ import annotations

from _thread import allocate_lock, start_new_thread
from time import sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

_TICK = 0.001  # seconds
_BURST = 16  # posts since the burst began that go at once


class Flusher:
    """The thread, and what it knows of the burst."""

    def __init__(self, flush: Callable[[], None]) -> None:
        self.posts = 0  # since the last quiet tick, or since the main thread waited for the host
        self.parked = True
        self._flush = flush
        self._started = False
        self._gate = allocate_lock()
        self._gate.acquire()

    @property
    def warm(self) -> bool:
        """Whether this is a burst."""
        return self.posts > _BURST

    def start(self) -> None:
        """Something waits, and the thread sleeps."""
        self.parked = False
        if self._started:
            try:
                self._gate.release()
            except RuntimeError:  # released already
                pass
            return
        self._started = True
        try:
            start_new_thread(self._run, ())
        except RuntimeError:  # no process left for it: nothing can wait
            self._started, self.parked = False, True
            self._flush()

    def _run(self) -> None:
        while True:
            before = self.posts
            sleep(_TICK)
            self._flush()
            if self.posts == before:
                self.posts = 0
                self._park()

    def _park(self) -> None:
        self.parked = True
        # A post after this line sees parked; one before it is sent here.
        self._flush()
        self._gate.acquire()
        self.parked = False
