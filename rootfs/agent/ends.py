"""The two kinds of channel: one socket, or two descriptors of any kind.

Guest code that may not import `_socket` shall not find it loaded either, so the
calls of sockets are used only where they are part of the interpreter itself.

A read stores its result in a list by C code, within the call, so that an
exception raised by a signal handler never loses bytes that were received, nor the
descriptor that came with them.
"""

from __future__ import annotations

import posix
import select
import sys
from time import sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .codec import Data

    Received = tuple[Any, ...]  # how many bytes, and the ancillary data of recvmsg

SOCKETS = "_socket" in sys.builtin_module_names
_ETOOMANYREFS = 109  # as many descriptors are under way as the guest may have open
_PARTS = 64  # buffers handed to the kernel at once
_POLLS = 120  # before going to sleep: some 60 us, in which a sleeper is woken and answers
_SLEEPS = 15  # after polling in vain again and again: so many reads sleep at once


class End:
    """What Channel needs of its file descriptors; one thread at a time reads, one writes."""

    blocking = False  # whether read() can wait by itself

    def __init__(self, reader: int) -> None:
        self._poll = select.poll()
        self._poll.register(reader, select.POLLIN)

    def read(self, received: list[Received], room: memoryview, block: bool) -> None:
        """Receives into room and appends what came to received; 0 bytes are the end."""
        raise NotImplementedError

    def write(self, parts: list[Data]) -> int:
        """Sends what fits and returns the number of bytes; BlockingIOError if none."""
        raise NotImplementedError

    def write_with(self, parts: list[Data], fd: int) -> int:
        """As write, with a descriptor."""
        raise NotImplementedError

    def available(self) -> bool:
        """Whether a read would return at once: with bytes, or with the end."""
        return bool(self._poll.poll(0))

    def forget(self) -> None:
        """Gives up the descriptors without closing them."""


class SocketEnd(End):
    """A socket that is both stdin and stdout: the supervisor's way."""

    blocking = True

    def __init__(self, fd: int, sleep: Callable[[int, int], None]) -> None:
        super().__init__(fd)
        import _socket

        self._socket = _socket.socket(fileno=fd)
        self._sleep = sleep
        self._now = _socket.MSG_DONTWAIT
        self._flags = _socket.MSG_CMSG_CLOEXEC | _socket.MSG_DONTWAIT
        self._room = _socket.CMSG_LEN(4)  # for one descriptor
        self._patience = 1  # so many reads until it polls again; the first request takes longer to come
        self._vain = 0  # so many will follow when it polls in vain

    def read(self, received: list[Received], room: memoryview, block: bool) -> None:
        if block and not self._linger():
            self._sleep(self._socket.fileno(), select.POLLIN)
        received.extend(map(self._socket.recvmsg_into, ((room,),), (self._room,), (self._flags,)))

    def _linger(self) -> bool:
        """Polls for a moment, about as long as it takes to go to sleep and be woken.

        The host does the same: an exchange of short messages then takes half the
        time. The moment is as long as an answer of one who has to be woken takes, so
        that two who sleep wake each other up for good. Polling in vain, because the host is slow or there
        is no core for it, costs the moment in one read of sixteen.
        """
        if self._patience:
            self._patience -= 1
            return False
        poll = self._poll.poll
        for _ in range(_POLLS):
            if poll(0):
                self._vain = 0
                return True
        self._patience = self._vain = min(2 * self._vain + 1, _SLEEPS)
        return False

    def write(self, parts: list[Data]) -> int:
        if len(parts) == 1:
            return self._socket.send(parts[0], self._now)
        return self._socket.sendmsg(parts[:_PARTS], (), self._now)

    def write_with(self, parts: list[Data], fd: int) -> int:
        rights = (1, 1, fd.to_bytes(4, sys.byteorder))  # SOL_SOCKET, SCM_RIGHTS
        try:
            return self._socket.sendmsg(parts[:_PARTS], (rights,), self._now)
        except OSError as error:
            if error.errno != _ETOOMANYREFS:
                raise
            sleep(0.001)
            raise BlockingIOError from None

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

    def read(self, received: list[Received], room: memoryview, block: bool) -> None:
        received.extend(zip(map(posix.readv, (self._reader,), ((room,),)), ((),)))

    def write(self, parts: list[Data]) -> int:
        return posix.writev(self._writer, parts[:_PARTS])
