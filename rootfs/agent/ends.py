"""The two kinds of channel: one socket, or two descriptors of any kind.

Guest code that may not import `_socket` shall not find it loaded either, so the
calls of sockets are used only where they are part of the interpreter itself.

A read stores its result in a list by C code, within the call, so that an
exception raised by a signal handler never loses bytes that were received.
"""

from __future__ import annotations

import posix
import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .codec import Data

SOCKETS = "_socket" in sys.builtin_module_names
_PARTS = 64  # buffers handed to the kernel at once
_POLLS = 60  # before going to sleep: some 20 us
_SLEEPS = 15  # after polling in vain: so many reads sleep at once


class End:
    """What Channel needs of its file descriptors; one thread at a time reads, one writes."""

    blocking = False  # whether read() can wait by itself

    def __init__(self, reader: int) -> None:
        self._poll = select.poll()
        self._poll.register(reader, select.POLLIN)

    def read(self, counts: list[int], room: memoryview, block: bool) -> None:
        """Receives into room and appends the number of bytes to counts; 0 is the end."""
        raise NotImplementedError

    def write(self, parts: list[Data]) -> int:
        """Sends what fits and returns the number of bytes; BlockingIOError if none."""
        raise NotImplementedError

    def available(self) -> bool:
        """Whether a read would return at once: with bytes, or with the end."""
        return bool(self._poll.poll(0))

    def forget(self) -> None:
        """Gives up the descriptors without closing them."""


class SocketEnd(End):
    """A socket that is both stdin and stdout: the supervisor's way."""

    blocking = True

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        import _socket

        self._socket = _socket.socket(fileno=fd)
        self._now = _socket.MSG_DONTWAIT
        self._patience = 0  # below 0: so many reads until it polls again

    def read(self, counts: list[int], room: memoryview, block: bool) -> None:
        if block:
            self._linger()
        counts.extend(map(self._socket.recv_into, (room,), (0,), (0 if block else self._now,)))

    def _linger(self) -> None:
        """Polls for a moment that is shorter than going to sleep and being woken.

        The host does the same: an exchange of short messages then takes half the
        time. Polling in vain, because the host is slow or there is no core for
        it, costs the moment in one read of sixteen.
        """
        if self._patience < 0:
            self._patience += 1
            return
        poll = self._poll.poll
        for _ in range(_POLLS):
            if poll(0):
                return
        self._patience = -_SLEEPS

    def write(self, parts: list[Data]) -> int:
        if len(parts) == 1:
            return self._socket.send(parts[0], self._now)
        return self._socket.sendmsg(parts[:_PARTS], (), self._now)

    def forget(self) -> None:
        self._socket.detach()


class Pair(End):
    """Two pipes or files, what a container engine gives as stdin and stdout; or one socket, twice."""

    def __init__(self, reader: int, writer: int) -> None:
        super().__init__(reader)
        self._reader = reader
        self._writer = writer
        posix.set_blocking(reader, False)
        posix.set_blocking(writer, False)

    def read(self, counts: list[int], room: memoryview, block: bool) -> None:
        counts.extend(map(posix.readv, (self._reader,), ((room,),)))

    def write(self, parts: list[Data]) -> int:
        return posix.writev(self._writer, parts[:_PARTS])


def wait_for(fd: int, events: int, timeout: float) -> None:
    """Waits until fd is ready; timeout in seconds, negative for ever."""
    poll = select.poll()
    poll.register(fd, events)
    poll.poll(None if timeout < 0 else timeout * 1000 + 1)
