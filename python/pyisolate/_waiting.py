"""What threads wait for, and how they sleep: the small parts of _channel."""

from __future__ import annotations

import threading
from collections import deque
from typing import Deque, Optional

from ._frames import Frame


class Request:
    """One exec or call; ``reply`` is its DONE, RESULT or ERROR frame once that came."""

    __slots__ = ("id", "kind", "reply", "output", "abandoned")

    def __init__(self, id: int, kind: int, listening: bool) -> None:
        self.id = id
        self.kind = kind
        self.reply: Optional[Frame] = None
        self.output: Optional[Deque[Frame]] = deque() if listening else None
        self.abandoned = False  # nobody wants to know how it ends

    def take(self) -> Optional[Frame]:
        """The next frame for the thread that waits for this request: its output, then its reply."""
        return self.output.popleft() if self.output else self.reply


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
