"""What a reload has changed of the policy: the host writes it into the guest's root.

The file is what PSI_CONFIG would be (agent.py). A signal asks to look at it; whoever is
about to do what an older policy forbids or allows looks as well.
"""

from __future__ import annotations

import posix

from .codec import decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from threading import RLock
    from typing import Any, Callable
else:
    from _thread import RLock

_FILE = "/usr/lib/psi/reloaded"


class Reloaded:
    """The file, and who takes over what is new in it."""

    def __init__(self) -> None:
        self.takers: list[Callable[[dict[str, Any]], object]] = []
        self._seen: object = None
        self._lock = RLock()  # a signal may come within

    def look(self) -> bool:
        """Takes over the latest reload; False if there was none since the last look. Any thread may call it."""
        with self._lock:
            return self._look()

    def take(self, config: dict[str, Any]) -> None:
        """Takes over what the policy says."""
        for take in self.takers:
            take(config)

    def look_again(self) -> None:
        """What came before a reload has been taken over after it."""
        if self._seen is not None:
            self._seen = None
            self.look()

    def _look(self) -> bool:
        try:
            stat = posix.stat(_FILE)
            version = stat.st_ino, stat.st_mtime_ns
            if version == self._seen:
                return False
            with open(_FILE, "rb") as file:
                config = decode(b"J" + file.read())
        except OSError:
            return False
        self.take(config)
        self._seen = version
        return True
