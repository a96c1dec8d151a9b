"""Events: what happens to sandboxes beside their data, as an asynchronous iterator.

::

    async for ts, sandbox, event in psi.events:
        if event == "MEM_KILL":
            print(sandbox, event.details)

``ts`` is in seconds as ``time.time()``, ``sandbox`` the :class:`~pyisolate.sandbox.Sandbox` (``str()`` gives
its name), ``event`` an :class:`Event`: a str equal to ``MEM_KILL``, ``CPU_THROTTLE``, ``POLICY_HOTLOAD``,
``BROKER_ERROR`` or ``DENIED``, with ``details``.

Each ``async for`` is a consumer of its own and gets every event from its start on; and it starts with
the events that no consumer has had yet, so that none is lost by listening late. What nobody reads is
bounded: beyond 4096 events the oldest DENIED go first, then the oldest CPU_THROTTLE, then the oldest of
the others; MEM_KILL, of which there is at most one for each sandbox, only beyond 65536.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, AsyncIterator, Dict, List, Mapping, NamedTuple, Set, Tuple

from ._lock import make_lock

if TYPE_CHECKING:
    from .sandbox import Sandbox

KEPT = 4096
KEPT_KILLS = 65536

Item = Tuple[float, "Sandbox", "Event"]


class Event(str):
    """The name of what happened; ``details`` has the figures, by name."""

    __slots__ = ("details",)
    details: Mapping[str, Any]

    def __new__(cls, name: str, details: Mapping[str, Any]) -> "Event":
        event = super().__new__(cls, name)
        event.details = dict(details)
        return event


class _Entry(NamedTuple):
    number: int
    item: Item


class EventLog:
    """The events of this process, and who waits for them. The I/O thread publishes, loops consume."""

    def __init__(self) -> None:
        self._lock = make_lock()  # guards all that follows
        self._entries: List[_Entry] = []  # oldest first
        self._next = 0  # the number of the next event
        self._unread = 0  # the first number that no consumer has had
        self._waiting: Set["_Wakeup"] = set()

    def publish(self, ts: float, sandbox: "Sandbox", event: Event) -> None:
        """Add an event and wake everyone who waits for one."""
        with self._lock:
            self._entries.append(_Entry(self._next, (ts, sandbox, event)))
            self._next += 1
            if len(self._entries) > KEPT:
                self._shrink()
            waiting, self._waiting = self._waiting, set()
        for wakeup in waiting:
            wakeup.fire()

    def start(self) -> int:
        """The number of the event that a new consumer begins with."""
        with self._lock:
            return self._unread

    async def after(self, number: int) -> Tuple[int, Item]:
        """The first event with this number or a later one, as soon as there is one, and its number."""
        while True:
            with self._lock:
                entry = self._find(number)
                if entry is not None:
                    self._unread = max(self._unread, entry.number + 1)
                    return entry
                wakeup = _Wakeup(asyncio.get_running_loop())
                self._waiting.add(wakeup)
            try:
                await wakeup.future
            finally:
                with self._lock:
                    self._waiting.discard(wakeup)

    def _find(self, number: int) -> "_Entry | None":
        # Numbers rise along the list, with gaps where entries were dropped.
        low, high = 0, len(self._entries)
        while low < high:
            middle = (low + high) // 2
            if self._entries[middle].number < number:
                low = middle + 1
            else:
                high = middle
        return self._entries[low] if low < len(self._entries) else None

    def _shrink(self) -> None:
        # Half of the room is made at once, so that a flood costs each event the same little.
        excess = len(self._entries) - KEPT // 2
        for droppable in (("DENIED",), ("CPU_THROTTLE",), ("POLICY_HOTLOAD", "BROKER_ERROR")):
            kept: List[_Entry] = []
            for entry in self._entries:
                if excess > 0 and str(entry.item[2]) in droppable:
                    excess -= 1
                else:
                    kept.append(entry)
            self._entries = kept
        if len(self._entries) > KEPT_KILLS:
            del self._entries[: len(self._entries) - KEPT_KILLS]


class _Wakeup:
    """One consumer's wait, in its own event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.future: "asyncio.Future[None]" = loop.create_future()

    def fire(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._resolve)
        except RuntimeError:
            pass  # the loop was closed while its consumer waited

    def _resolve(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Consumer(AsyncIterator[Item]):
    """One reader of the events; it never ends by itself."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._number = log.start()

    def __aiter__(self) -> "Consumer":
        return self

    async def __anext__(self) -> Item:
        number, item = await self._log.after(self._number)
        self._number = number + 1
        return item


class Events(AsyncIterator[Item]):
    """``psi.events``. Iterating makes a consumer; ``anext(psi.events)`` is one consumer for the process."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew with no events: at first, and in a forked child."""
        self.log = EventLog()
        self._own = Consumer(self.log)

    def __aiter__(self) -> Consumer:
        return Consumer(self.log)

    async def __anext__(self) -> Item:
        return await self._own.__anext__()


def details_of(message: Mapping[str, Any]) -> Dict[str, Any]:
    """The details of a supervisor's event message."""
    details = message.get("details")
    return dict(details) if isinstance(details, dict) else {}
