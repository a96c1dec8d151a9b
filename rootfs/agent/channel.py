"""Frames in and out of the channel, from any thread and at any time.

Whoever needs something (the main thread between requests, guest code in recv)
reads for everybody and files what it finds; while nobody reads, watcher.py
looks out, so that an INTERRUPT reaches a busy main thread. A frame is written
by one thread at a time.

The main thread is critical (see signals.py) here, except where it waits.
There a handler may raise, so what was received is stored by C code, in the
same call, before any handler can run: list.extend(map(recv_into, ...)).
"""

from __future__ import annotations

import posix
import select
from _thread import allocate_lock, get_ident
from time import monotonic

from . import frames
from .ends import SOCKETS, Pair, SocketEnd, wait_for
from .watcher import Watcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from threading import RLock
    from typing import Any, Callable, Optional, Union

    from .codec import Data
    from .ends import End
    from .signals import Guard
else:
    from _thread import RLock

_BUFFER = 64 << 10
_JOIN = 64 << 10  # frames below this are sent as one piece


class Channel:
    """One end of the channel. deliver(type, id, payload) files what arrives."""

    def __init__(
        self, reader: int, writer: int, message: int, guard: Guard, deliver: Callable[[int, int, Data], None]
    ) -> None:
        self.guard = guard
        self.open = True
        self.ended = False  # the host has closed it
        self.blocked = False  # the main thread waits in the middle of a frame
        self.held = 0  # bytes of frames that nobody has taken yet
        self.message = message
        self._deliver = deliver
        self._fds = (reader, writer)
        self._end: End = SocketEnd(reader) if reader == writer and SOCKETS else Pair(reader, writer)
        self._reading = allocate_lock()
        self._watcher = Watcher(reader, guard.main)
        self._waiting: list[LockType] = []
        self._counts: list[int] = []
        self._bytes = bytearray(_BUFFER)
        self._view = memoryview(self._bytes)
        self._start = self._stop = 0
        self._large: Optional[tuple[int, int, bytearray]] = None  # type, id, payload being read
        self._filled = 0
        self._writing = RLock()
        self._busy = False
        self._nested: list[list[Data]] = []

    def fileno(self) -> int:
        return self._fds[0]

    def watch(self) -> None:
        """Begins to look out for what arrives, which else begins with the first frame."""
        self._watcher.start()

    def abandon(self) -> None:
        """After fork, in the child: the channel belongs to the parent."""
        self.open = False
        for fd in set(self._fds):
            try:
                posix.close(fd)
            except OSError:
                pass
        self._end.forget()

    # --- reading

    def wait(self, ready: Callable[[], Any], timeout: Optional[float] = None) -> bool:
        """Reads until ready() or the time is over. The main thread is critical."""
        deadline = None if timeout is None else monotonic() + timeout
        me = get_ident()
        if self._watcher.reader == me:
            raise RuntimeError("recv() was called by code that runs inside recv()")
        while True:
            if ready():
                return True
            if self.ended:
                raise EOFError("the host has closed the channel")
            if self._reading.acquire(False):
                self._watcher.reader = me
                try:
                    in_time = ready() or self._fill(deadline, me == self.guard.main)
                finally:
                    self._release()
            else:
                in_time = self._follow(deadline, me == self.guard.main)
            if not in_time and not ready():
                return False

    def _release(self) -> None:
        """Ends this thread's turn to read."""
        watcher = self._watcher
        watcher.reader = 0
        watcher.reads += 1
        self._reading.release()
        if watcher.parked:
            watcher.unpark()
        if self._waiting:
            self._wake()

    def take_post(self) -> Optional[bytes]:
        """One blocking read by the critical main thread: the payload, if it is just one POST.

        The short way for the commonest case. None sends the caller to wait(),
        which finds whatever was read here in the buffer.
        """
        guard = self.guard
        counts = self._counts
        if counts or self._stop or self._large or not self._end.blocking or not self._reading.acquire(False):
            return None
        self._watcher.reader = guard.main
        payload = None
        try:
            guard.critical = False
            if guard.pending:
                guard.leave()
            self._end.read(counts, self._view, True)
            guard.critical = True
            got = counts[0]
            if got > frames.HEADER_SIZE:
                size, kind, _, _, _ = frames.HEADER.unpack_from(self._bytes)
                if kind == frames.POST and size == got - frames.HEADER_SIZE:
                    payload = bytes(self._view[frames.HEADER_SIZE : got])
                    counts.clear()
        except OSError:  # wait() will meet it again
            pass
        finally:
            guard.critical = True
            self._release()
        return payload

    def drain(self) -> None:
        """Files what has arrived, without waiting; nothing if somebody is reading."""
        if self.held > self.message or not self.open or not self._reading.acquire(False):
            return
        me = get_ident()
        self._watcher.reader = me
        main = me == self.guard.main
        before = self.guard.critical
        if main:
            self.guard.critical = True
        try:
            while not self.ended and self.held <= self.message and self._end.available():
                self._receive(False, False)
        finally:
            self._release()
            if main:
                self.guard.critical = before

    def _fill(self, deadline: Optional[float], main: bool) -> bool:
        if deadline is None and self._end.blocking:
            self._receive(True, main)
            return True
        while not self._end.available():
            left = -1.0 if deadline is None else deadline - monotonic()
            if deadline is not None and left <= 0:
                return False
            self._window(main, wait_for, self._fds[0], select.POLLIN, left)
        self._receive(False, main)
        return True

    def _window(self, main: bool, wait: Callable[..., Any], *args: Any) -> None:
        """Waits with handlers allowed: nothing is held that an exception could lose."""
        if main:
            self.guard.leave()
        wait(*args)
        if main:
            self.guard.critical = True

    def _receive(self, block: bool, main: bool) -> None:
        """One read from the kernel, and all the frames that it completes."""
        counts = self._counts
        if self._large is None:
            room = self._view[self._stop :]
        else:
            room = memoryview(self._large[2])[self._filled :]
        try:
            if not counts:  # else an exception came right after the read: use that
                if main:
                    self.guard.critical = False
                    if self.guard.pending:
                        self.guard.leave()
                self._end.read(counts, room, block)
                if main:
                    self.guard.critical = True
        except BlockingIOError:
            return
        except OSError:  # reset, or the guest closed its own channel
            counts.append(0)
        finally:
            if main:
                self.guard.critical = True
        got = counts.pop()
        if got == 0:
            self.ended = True
        elif self._large is None:
            self._stop += got
            self._split()
        else:
            self._filled += got
            self._finish_large()

    def _split(self) -> None:
        """Files every whole frame of the buffer and moves the rest to its start."""
        start, stop = self._start, self._stop
        while stop - start >= frames.HEADER_SIZE:
            size, kind, _, _, ident = frames.HEADER.unpack_from(self._bytes, start)
            begin = start + frames.HEADER_SIZE
            if begin + size > stop:
                if frames.HEADER_SIZE + size > _BUFFER:
                    self._begin_large(kind, ident, size, begin, stop)
                    return
                break
            payload = bytes(self._view[begin : begin + size])
            start = begin + size
            self._start = start
            self.held += size
            self._deliver(kind, ident, payload)
        if start == stop:
            start = stop = 0
        elif start:
            self._view[: stop - start] = bytes(self._view[start:stop])
            start, stop = 0, stop - start
        self._start, self._stop = start, stop

    def _begin_large(self, kind: int, ident: int, size: int, begin: int, stop: int) -> None:
        payload = bytearray(size)
        self._filled = stop - begin
        payload[: self._filled] = self._view[begin:stop]
        self._large = (kind, ident, payload)
        self._start = self._stop = 0

    def _finish_large(self) -> None:
        assert self._large is not None
        kind, ident, payload = self._large
        if self._filled == len(payload):
            self._large = None
            self.held += len(payload)
            self._deliver(kind, ident, payload)

    def _follow(self, deadline: Optional[float], main: bool) -> bool:
        """Waits until the thread that reads has filed something, or stopped reading."""
        turn = allocate_lock()
        turn.acquire()
        self._waiting.append(turn)
        if not self._reading.locked():
            return True
        left = -1.0 if deadline is None else max(deadline - monotonic(), 0.0)
        self._window(main, turn.acquire, True, left)
        return deadline is None or monotonic() < deadline

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for turn in waiting:
            turn.release()

    # --- writing

    def send(self, kind: int, ident: int, payload: Union[bytes, list[Data]] = b"", flags: int = 0) -> None:
        """Sends one frame; waits while the host does not read.

        Guest code may be interrupted while it waits, as long as no byte of the
        frame has been sent.
        """
        if not self.open:
            raise RuntimeError("the channel belongs to the guest's first process: this is a child of it")
        if isinstance(payload, bytes):
            header = frames.HEADER.pack(len(payload), kind, flags, 0, ident)
            parts: list[Data] = [header + payload] if len(payload) < _JOIN else [header, payload]
        else:
            size = sum(map(len, payload))
            parts = [frames.HEADER.pack(size, kind, flags, 0, ident), *payload]
        guard = self.guard
        if get_ident() != guard.main:
            self._send(parts, None)
            return
        before = guard.critical
        guard.critical = True
        try:
            if not self._try_send(parts):
                self._send(parts, before)
        finally:
            guard.critical = before
        if not before and guard.pending:
            guard.leave()

    def _send(self, parts: list[Data], before: Optional[bool]) -> None:
        while not self._try_send(parts):
            if before is None:
                wait_for(self._fds[1], select.POLLOUT, -1.0)
            else:
                self.guard.critical = before
                if not before and self.guard.pending:
                    self.guard.leave()
                self.blocked = before
                wait_for(self._fds[1], select.POLLOUT, -1.0)
                self.blocked = False
                self.guard.critical = True

    def _try_send(self, parts: list[Data]) -> bool:
        """Sends the frame; False if the channel was full and nothing was sent."""
        if not self._writing.acquire(False):
            self._acquire_writing()
        try:
            if self._busy:  # a destructor, say, that prints while this thread sends
                self._nested.append(parts)
                return True
            self._busy = True
            try:
                if not self._transmit(parts, False):
                    return False
                while self._nested:
                    self._transmit(self._nested.pop(0), True)
                return True
            finally:
                self._busy = False
        finally:
            self._writing.release()

    def _acquire_writing(self) -> None:
        main = get_ident() == self.guard.main
        self.blocked = main or self.blocked
        self._writing.acquire()
        self.blocked = False if main else self.blocked

    def _transmit(self, parts: list[Data], started: bool) -> bool:
        rest = parts
        try:
            while True:
                try:
                    sent = self._end.write(rest)
                except BlockingIOError:
                    if not started:
                        return False
                    self._wait_inside()
                    continue
                started = True
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
        wait_for(self._fds[1], select.POLLOUT, -1.0)
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
