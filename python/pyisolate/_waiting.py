"""What threads wait for, and how they sleep: the small parts of _channel."""

from __future__ import annotations

import threading
from collections import deque
from typing import Deque, Optional

from ._frames import Frame


class Request:
    """One exec or call; ``reply`` is its DONE, RESULT or ERROR frame once that came."""

    __slots__ = ("id", "kind", "reply", "output", "early", "abandoned")

    def __init__(self, id: int, kind: int, listening: bool) -> None:
        self.id = id
        self.kind = kind
        self.reply: Optional[Frame] = None
        self.output: Optional[Deque[Frame]] = deque() if listening else None
        self.early = 0  # bytes of output that came before anybody took it
        self.abandoned = False  # nobody wants to know how it ends

    def take(self) -> Optional[Frame]:
        """The next frame for the thread that waits for this request: its output, then its reply."""
        return self.output.popleft() if self.output else self.reply


class Bell:
    """Rings once, for all who wait for it now or later. As threading.Event, without a lock and a queue of its own to make."""

    __slots__ = ("_silent", "rung")

    def __init__(self) -> None:
        self.rung = False
        self._silent = threading.Lock()  # locked until it rings
        self._silent.acquire()

    def ring(self) -> None:
        """Let go everybody who waits; again is fine."""
        self.rung = True
        self._pass_on()

    def wait(self, timeout: float) -> bool:
        """Whether it has rung, within so many seconds."""
        if not self.rung and self._silent.acquire(True, min(timeout, threading.TIMEOUT_MAX)):
            self._pass_on()
        return self.rung

    def _pass_on(self) -> None:
        try:
            self._silent.release()
        except RuntimeError:
            pass  # another thread has


class Waiter:
    """A thread in ``Channel._wait``: it leads, or sleeps until it is woken."""

    queued = False
    _woken: Optional[threading.Lock] = None

    def queue(self) -> None:
        self.queued = True
        self._woken = threading.Lock()
        self._woken.acquire()

    def wake(self) -> None:
        if self._woken is not None and self._woken.locked():
            self._woken.release()

    def sleep(self, timeout: Optional[float]) -> None:
        if self._woken is not None:
            self._woken.acquire(True, -1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))
