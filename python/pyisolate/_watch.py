"""How an event loop waits for a guest's channel: by watching its socket, not by reading in a thread."""

from __future__ import annotations

import asyncio
import time
from typing import Callable, List, Optional, TypeVar

from ._channel import Channel, WaitExpired

T = TypeVar("T")


class ChannelWatch:
    """The waiters of one channel. It belongs to the loop in which it was made."""

    def __init__(self, channel: Channel) -> None:
        self.loop = asyncio.get_running_loop()
        self._channel = channel
        self._waiting: List["asyncio.Future[None]"] = []  # for a change of the channel
        self._watched = -1  # the channel's descriptor while the loop watches it

    async def until(self, attempt: Callable[[], T], deadline: Optional[float]) -> T:
        """What the attempt, which does not wait, returns as soon as there is something."""
        while True:
            try:
                found = attempt()
            except WaitExpired:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise
                await self._change(left)
                continue
            self.wake()  # the others' frames were filed by the same read, or there is room again
            return found

    def wake(self) -> None:
        """Have all who wait try again."""
        for waiter in self._waiting:
            _resolve(waiter)

    def stop(self) -> None:
        """Watch no more, until somebody waits again."""
        if self._watched >= 0:
            self.loop.remove_reader(self._watched)
            self._watched = -1

    async def _change(self, timeout: Optional[float]) -> None:
        waiter = self.loop.create_future()
        self._waiting.append(waiter)
        timer = None if timeout is None else self.loop.call_later(timeout, _resolve, waiter)
        self._watch()
        try:
            await waiter
        finally:
            self._waiting.remove(waiter)
            if timer is not None:
                timer.cancel()

    def _watch(self) -> None:
        fd = self._channel.fileno()
        if self._watched < 0 <= fd and not self._channel.is_full:
            self.loop.add_reader(fd, self._readable)
            self._watched = fd

    def _readable(self) -> None:
        # Watching costs two system calls, so it goes on until it is seen to be in vain: nobody waits, or what
        # has arrived must not be read before somebody receives.
        if not self._waiting or self._channel.is_full:
            self.stop()
        else:
            self.wake()


def _resolve(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
