"""A lock for `with` blocks that a KeyboardInterrupt may leave at any point.

From Python 3.10 on that is `threading.Lock`. Python 3.9 can take an interrupt between the last step of a
`with` block and the call of `__exit__`, and the lock stays locked for good; there, a thread that finds that
it holds the lock already (nothing here nests) lets go of it first.
"""

from __future__ import annotations

import sys
import threading
from typing import Callable, ContextManager


class _HealingLock:
    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> bool:
        self._let_go()
        return self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._let_go()

    def _let_go(self) -> None:
        while self._lock._is_owned():  # type: ignore[attr-defined]
            self._lock.release()


#: Makes a lock, not locked.
make_lock: Callable[[], ContextManager[bool]] = _HealingLock
if sys.version_info >= (3, 10):
    make_lock = threading.Lock
