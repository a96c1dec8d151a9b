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

from . import frames, memfd
from .codec import Large
from .watcher import Watcher
from .writer import Writer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from typing import Any, Callable, Optional, Union

    from .codec import Data
    from .ends import Received
    from .signals import Guard

    Payload = Union[Data, Large, "Lost"]

_buffer = bytearray(64 << 10)  # of the one channel of a process: made here, a guest shares what it does not fill with its zygote


class Lost(OSError):
    """Why a payload could not be taken; raised when it is asked for."""

    def __len__(self) -> int:
        return 0


class Channel(Writer):
    """One end of the channel. deliver(type, id, payload) files what arrives."""

    def __init__(
        self,
        message: int,
        guard: Guard,
        deliver: Callable[[int, int, Payload], None],
        fits: Callable[[int], bool],
    ) -> None:
        super().__init__(guard, fits)
        self.ended = False  # the host has closed it
        self.held = 0  # bytes of frames that nobody has taken yet
        self.message = message
        self._deliver = deliver
        self._reading = allocate_lock()
        self._watcher = Watcher(guard.main)
        self._waiting: list[LockType] = []
        self._received: list[Received] = []  # one read that has not been looked at
        self._file: Optional[int] = None  # the descriptor of the frame that comes next
        self._bytes = _buffer
        self._view = memoryview(self._bytes)
        self._start = self._stop = 0
        self._large: Optional[tuple[int, int, int, bytearray]] = None  # type, flags, id, payload being read
        self._filled = 0

    def fileno(self) -> int:
        return self._fds[0]

    def connect(self, reader: int, writer: int) -> None:
        super().connect(reader, writer)
        self._watcher.look_at(reader, self._end.blocking)

    def available(self) -> bool:
        """Whether something has arrived that nobody has read."""
        return self._end.available()

    def watch(self) -> None:
        """Begins to look out for what arrives, as after each read."""
        self._watcher.unpark()

    def leave_unwatched(self, left: bool) -> None:
        """Whether nobody looks out for what arrives on this channel, which is then read only by who waits for something."""
        self._watcher.parked = not left

    # --- reading

    def wait(self, ready: Callable[[], Any], timeout: Optional[float] = None) -> bool:
        """Reads until ready() or the time is over. The main thread is critical."""
        deadline = None if timeout is None else monotonic() + timeout
        me = get_ident()
        if me == self.guard.main:
            self._settle()
        if self._watcher.reader == me:
            raise RuntimeError("recv() was called by code that runs inside recv()")
        while True:
            if ready():
                return True
            if self.ended:
                raise EOFError("the host has closed the channel")
            if self._reading.acquire(False):
                self._begin(me)
                try:
                    in_time = ready() or self._fill(deadline, me == self.guard.main)
                finally:
                    self._release()
            else:
                in_time = self._follow(deadline, me == self.guard.main)
            if not in_time and not ready():
                return False

    def _settle(self) -> None:
        """The main thread begins to wait: a burst of posts, if there was one, is over."""
        self._flusher.posts = 0
        if self._burst:
            self._window(True, self._send, [], None)

    def _begin(self, me: int) -> None:
        """Begins this thread's turn to read."""
        watcher = self._watcher
        watcher.reader = me
        if watcher.armed:
            watcher.disarm()

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
        if self._burst:
            self._settle()
        self._flusher.posts = 0
        guard = self.guard
        received = self._received
        if received or self._stop or self._large or not self._end.blocking or not self._reading.acquire(False):
            return None
        self._begin(guard.main)
        payload = None
        try:
            guard.critical = False
            if guard.pending:
                guard.leave()
            self._end.read(received, self._view, True)
            guard.critical = True
            got = received[0][0]
            if got > frames.HEADER_SIZE:
                size, kind, flags, _, _ = frames.HEADER.unpack_from(self._bytes)
                if kind == frames.POST and size == got - frames.HEADER_SIZE and not flags & frames.FLAG_MEMFD:
                    self.memfds = flags == frames.FLAG_TAKES
                    payload = bytes(self._view[frames.HEADER_SIZE : got])
                    received.clear()
        except OSError:  # wait() will meet it again
            pass
        finally:
            guard.critical = True
            self._release()
        return payload

    def drain(self) -> None:
        """Files what has arrived, without waiting; nothing if somebody is reading."""
        me = get_ident()
        main = me == self.guard.main
        before = self.guard.critical
        if main:
            self.guard.critical = True  # first: an exception of a handler's would leave the turn to read taken
        try:
            if self.held > self.message or not self.open or not self._reading.acquire(False):
                return
            self._begin(me)
            try:
                while not self.ended and self.held <= self.message and self._end.available():
                    self._receive(False, False)
            finally:
                self._release()
        finally:
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
            self._window(main, self.guard.sleep, self._fds[0], select.POLLIN, left)
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
        received = self._received
        if self._large is None:
            room = self._view[self._stop :]
        else:
            room = memoryview(self._large[3])[self._filled :]
        try:
            if not received:  # else an exception came right after the read: use that
                if main:
                    self.guard.critical = False
                    if self.guard.pending:
                        self.guard.leave()
                self._end.read(received, room, block)
                if main:
                    self.guard.critical = True
        except BlockingIOError:
            return
        except OSError:  # reset, or the guest closed its own channel
            received.append((0, ()))
        finally:
            if main:
                self.guard.critical = True
        got, ancillary, *_ = received.pop()
        if ancillary:
            self._file = memfd.only_fd(ancillary)
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
            size, kind, flags, _, ident = frames.HEADER.unpack_from(self._bytes, start)
            begin = start + frames.HEADER_SIZE
            if begin + size > stop:
                if frames.HEADER_SIZE + size > len(_buffer):
                    self._begin_large(kind, flags, ident, size, begin, stop)
                    return
                break
            payload = bytes(self._view[begin : begin + size])
            start = begin + size
            self._start = start
            self._file_frame(kind, flags, ident, payload)
        if start == stop:
            start = stop = 0
        elif start:
            self._view[: stop - start] = bytes(self._view[start:stop])
            start, stop = 0, stop - start
        self._start, self._stop = start, stop

    def _begin_large(self, kind: int, flags: int, ident: int, size: int, begin: int, stop: int) -> None:
        payload = bytearray(size)
        self._filled = stop - begin
        payload[: self._filled] = self._view[begin:stop]
        self._large = (kind, flags, ident, payload)
        self._start = self._stop = 0

    def _finish_large(self) -> None:
        assert self._large is not None
        if self._filled == len(self._large[3]):
            kind, flags, ident, payload = self._large
            self._large = None
            self._file_frame(kind, flags, ident, payload)

    def _file_frame(self, kind: int, flags: int, ident: int, payload: Payload) -> None:
        if flags:
            self.memfds = bool(flags & frames.FLAG_TAKES) and self.passes_memfds
            if flags & frames.FLAG_MEMFD:
                payload = self._take_file(kind, bytes(payload))  # type: ignore[arg-type]
        self.held += len(payload)
        self._deliver(kind, ident, payload)

    def _take_file(self, kind: int, payload: bytes) -> Payload:
        """The payload whose larger part lies in the descriptor that came with it."""
        file, self._file = self._file, None
        if kind not in (frames.CALL, frames.POST) or len(payload) <= frames.SIZE.size:
            posix._exit(76)  # the host speaks another protocol
        if file is None:
            return Lost(24, "a value came as a descriptor, and the guest has too many open files to take it")
        try:
            rest = memfd.take(file, *frames.SIZE.unpack_from(payload))
        except (OSError, MemoryError) as error:
            return Lost(getattr(error, "errno", 12), f"a value came in a file that cannot be mapped: {error}")
        finally:
            posix.close(file)
        return Large(payload[frames.SIZE.size :], rest)

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
