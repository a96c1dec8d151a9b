"""Frames out, from any thread and at any time, each whole.

The main thread is critical (see signals.py) while it sends, except where it waits for
room with nothing of the frame sent.

A burst of short posts travels together: a system call for each would take longer than
everything else about it. The first of a burst go at once; later ones wait for each other,
a millisecond at most while other threads get to run (burst.py). Whatever else is sent goes behind them.
"""

from __future__ import annotations

import posix
import select
from _thread import get_ident

from . import frames, memfd
from .burst import Flusher
from .ends import SOCKETS, Pair, SocketEnd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from threading import RLock
    from typing import Callable, Optional, Union

    from .codec import Data
    from .ends import End
    from .memfd import Memfd
    from .signals import Guard
else:
    from _thread import RLock

_JOIN = 64 << 10  # frames below this are sent as one piece
_SHORT = 512  # bytes of a payload that may wait for others
_TOGETHER = 48  # posts that are sent at once


class Writer:
    """The half of the channel that leads to the host."""

    def __init__(self, guard: Guard, fits: Callable[[int], bool]) -> None:
        """``fits``: whether the host takes a value of so many bytes; asked about large ones, in the last moment."""
        self.guard = guard
        self.open = True
        self.blocked = False  # the main thread waits in the middle of a frame
        self.memfds = False  # the host takes them
        self._fits = fits
        self._fds: tuple[int, int]
        self._end: End
        self._writing = RLock()
        self._busy = False
        self._nested: list[tuple[list[Data], Optional[Memfd]]] = []
        self._burst: list[bytes] = []  # posts that wait; appended to at any time, taken from while writing
        self._flusher = Flusher(self.flush)

    def connect(self, reader: int, writer: int) -> None:
        """Takes over the descriptors, once, before anything is sent."""
        self._fds = (reader, writer)
        self._end = SocketEnd(reader, self.guard.sleep) if reader == writer and SOCKETS else Pair(reader, writer)

    def exchange(self, end: End) -> End:
        """Puts another end in the place of the one that there is."""
        before, self._end = self._end, end
        return before

    @property
    def passes_memfds(self) -> bool:
        """Whether descriptors can travel on this channel."""
        return self._end.blocking and memfd.SUPPORTED

    def abandon(self) -> None:
        """After fork, in the child: the channel belongs to the parent."""
        self.open = False
        self._burst.clear()
        for fd in set(self._fds):
            try:
                posix.close(fd)
            except OSError:
                pass
        self.forget()

    def forget(self) -> None:
        """Gives up the descriptors without closing them."""
        self._end.forget()

    def post(self, payload: Union[bytes, list[Data]]) -> None:
        """Sends a post, or has it wait for those that follow it in a burst."""
        flusher = self._flusher
        flusher.posts += 1
        if not flusher.warm or type(payload) is not bytes or len(payload) > _SHORT or not self.open:
            self.send(frames.GUEST_POST, 0, payload)
            return
        burst = self._burst
        if len(burst) >= _TOGETHER:
            self._send([], None)
        burst.append(frames.HEADER.pack(len(payload), frames.GUEST_POST, 0, 0, 0) + payload)
        if flusher.parked:
            flusher.start()

    def flush(self) -> None:
        """Sends what waits, as far as there is room; from any thread."""
        if self._burst and self._writing.acquire(False):
            try:
                if not self._busy:
                    self._try_send([], None)
            finally:
                self._writing.release()

    def send(self, kind: int, ident: int, payload: Union[bytes, list[Data]] = b"", flags: int = 0) -> None:
        """Sends one frame; waits while the host does not read.

        Guest code may be interrupted while it waits, as long as no byte of the
        frame has been sent.
        """
        if not self.open:
            raise RuntimeError("the channel belongs to the guest's first process: this is a child of it")
        size = len(payload) if isinstance(payload, bytes) else sum(map(len, payload))
        if size < _JOIN and isinstance(payload, bytes):
            self._send([frames.HEADER.pack(size, kind, flags, 0, ident) + payload], None)
            return
        parts: list[Data] = [payload[:1], memoryview(payload)[1:]] if isinstance(payload, bytes) else payload
        if self.memfds and kind in (frames.GUEST_POST, frames.RESULT) and size - len(parts[0]) >= memfd.LEAST:
            self._send_beside(kind, ident, parts)
        else:
            self._send([frames.HEADER.pack(size, kind, flags, 0, ident), *parts], None)

    def _send_beside(self, kind: int, ident: int, parts: list[Data]) -> None:
        """Sends the first part of a value in a frame and the rest in a file."""
        file = memfd.Memfd(parts[1:])
        head = frames.HEADER.pack(frames.SIZE.size + len(parts[0]), kind, frames.FLAG_MEMFD, 0, ident)
        self._send([b"".join((head, frames.SIZE.pack(file.size), parts[0]))], file)

    def _send(self, parts: list[Data], file: Optional[Memfd]) -> None:
        guard = self.guard
        if get_ident() != guard.main:
            while not self._try_send(parts, file):
                guard.sleep(self._fds[1], select.POLLOUT)
            return
        before = guard.critical
        guard.critical = True
        try:
            while not self._try_send(parts, file):
                guard.critical = before
                if not before and guard.pending:
                    guard.leave()
                self.blocked = before
                guard.sleep(self._fds[1], select.POLLOUT)
                self.blocked = False
                guard.critical = True
        finally:
            guard.critical = before
        if not before and guard.pending:
            guard.leave()

    def _try_send(self, parts: list[Data], file: Optional[Memfd]) -> bool:
        """Sends what waits and then the frame; False if the channel was full and nothing of the frame was sent."""
        if not self._writing.acquire(False):
            self._acquire_writing()
        try:
            if self._busy:  # a destructor, say, that prints while this thread sends
                self._nested.append((parts, file))
                return True
            self._busy = True
            try:
                if self._burst and not self._transmit_burst():
                    return False
                if self._oversized(parts, file):
                    raise ValueError("the value is too large to be sent: a reload has just lowered the limit (policy key message)")
                if parts and not self._transmit(parts, file, False):
                    return False
                while self._nested:
                    nested = self._nested.pop(0)
                    if not self._oversized(*nested):  # else its destructor would raise, which nobody would see
                        self._transmit(*nested, True)
                return True
            finally:
                self._busy = False
        finally:
            self._writing.release()

    def _oversized(self, parts: list[Data], file: Optional[Memfd]) -> bool:
        """Whether a frame is too large by now. At most one is between this and its first byte: the host allows for it."""
        if file is None and len(parts) < 2:
            return False
        size = sum(map(len, parts)) - frames.HEADER_SIZE + (file.size if file else 0)
        return size > frames.VALUE_SLACK and not self._fits(size)

    def _transmit_burst(self) -> bool:
        burst = self._burst
        together = len(burst)  # others may append meanwhile
        if not self._transmit([b"".join(burst[:together])], None, False):
            return False
        del burst[:together]
        return True

    def _acquire_writing(self) -> None:
        main = get_ident() == self.guard.main
        self.blocked = main or self.blocked
        self._writing.acquire()
        self.blocked = False if main else self.blocked

    def _transmit(self, parts: list[Data], file: Optional[Memfd], started: bool) -> bool:
        rest = parts
        begun = False  # once: the descriptor goes with the first byte
        try:
            while True:
                try:
                    if file is None or begun:
                        sent = self._end.write(rest)
                    else:
                        sent = self._end.write_with(rest, file.fd)
                except BlockingIOError:
                    if not started:
                        return False
                    self._wait_inside()
                    continue
                started = begun = True
                if len(rest) == 1 and sent == len(rest[0]):
                    return True
                rest = _after(rest, sent)
                if not rest:
                    return True
        except OSError as error:
            # Closed by the host: nobody is left to work for. Closed by the
            # guest itself: it has cut its own line.
            posix._exit(0 if isinstance(error, (BrokenPipeError, ConnectionError)) else 74)
        except BaseException:  # a stack that is used up, say
            if started:  # half a frame must not be followed by another one
                posix._exit(70)
            raise

    def _wait_inside(self) -> None:
        main = get_ident() == self.guard.main
        self.blocked = main or self.blocked
        self.guard.sleep(self._fds[1], select.POLLOUT)
        self.blocked = False if main else self.blocked


def _after(parts: list[Data], sent: int) -> list[Data]:
    rest: list[Data] = []
    for part in parts:
        if sent >= len(part):
            sent -= len(part)
        else:
            rest.append(memoryview(part)[sent:] if sent else part)
            sent = 0
    return rest
