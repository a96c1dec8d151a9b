"""The frames of a guest's channel, as bytes and out of bytes.

::

     0      4      5      6       8        12
     +------+------+------+-------+---------+-----------...
     | size | type | flags| zero  | id      | payload (size bytes)      all big endian
     +------+------+------+-------+---------+-----------...

    host → guest   EXEC source · CALL value · POST value · INTERRUPT · CANCEL   (and CONFIG, the supervisor's)
    guest → host   READY json · DONE · RESULT value · ERROR json · POST value · STDOUT · STDERR · NOTICE json

    a large value, with the flag MEMFD:      one descriptor comes with the frame's first byte
     12        20
     +---------+-------------...             and the rest, rest bytes, is the content of that
     | rest    | how it begins               sealed file in memory (_memfd)
     +---------+-------------...

Everything read here is hostile: a frame that breaks a rule is a :class:`ProtocolError`, and no length
that a guest claims is believed before that many bytes have come. At most one descriptor is held that no
frame has claimed yet; a second one, or one that no frame claims, is a breach.

Reading survives a KeyboardInterrupt between any two bytecodes, without losing or repeating a byte: what
the kernel gives is recorded inside one call into C, and every other step of the state is one assignment.

A lower limit of messages holds for frames that begin after what was under way when it came, but for one:
the guest may have been about to send it, and an honest one looks at its limit before every large frame.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
import termios
from collections import deque
from typing import Callable, Deque, List, NamedTuple, Optional, Tuple, Union, cast

from . import _memfd
from ._codec import Large

HEADER = struct.Struct("!IBBHI")
_REST = struct.Struct("!Q")

EXEC, CALL, POST, INTERRUPT, CANCEL = 1, 2, 3, 4, 5
PROTOCOL = 2  # that READY announces
READY, DONE, RESULT, ERROR, GUEST_POST, STDOUT, STDERR, NOTICE = 16, 17, 18, 19, 20, 21, 22, 23

_USUAL = frozenset((RESULT, ERROR, GUEST_POST, STDOUT, STDERR))  # with up to SMALL_FRAME bytes, always fine

OF_EXEC = 1  # flag of ERROR: the exception of an exec, hence also the next item of recv
MEMFD = 2  # flag of CALL, RESULT and both POSTs: a large value, see above
TAKES_MEMFDS = 4  # flag of what we send: the guest may send such values

SMALL_FRAME = 64 << 10  # limit of a payload that is not a value: output and JSON
VALUE_SLACK = 64 << 10  # what the encoding of a value may add to the policy's message limit

_FIRST = 4 << 10  # first size of the read buffer: many guests send little
_CHUNK = 32 << 10  # … and the next
_AT_ONCE = 128  # frames that are cut before the state is recorded: interrupts may come every few hundred µs
_KEEP = 256 << 10  # a buffer larger than this is given back when it is empty
_FILE_COUNTS = 1 << 20  # bytes that a file counts for at least: a mapping costs a descriptor as well
_ROOM = socket.CMSG_LEN(4)  # for one descriptor
_CLOEXEC = int(socket.MSG_CMSG_CLOEXEC)  # numbers: to combine the enumeration's members takes longer than to read
_CTRUNC = int(socket.MSG_CTRUNC)


class ProtocolError(Exception):
    """The guest broke the rules of the channel; the text says which rule."""


class TooLarge(ProtocolError):
    """… unless the limit has been raised, and we have not heard of it yet."""


class Frame(NamedTuple):
    """One frame; ``posted`` is the sum of what all posts and errors up to and including it hold."""

    type: int
    flags: int
    id: int
    payload: Union[bytes, Large]
    posted: int

    @property
    def data(self) -> bytes:
        """The payload of a frame that is no value."""
        return cast(bytes, self.payload)


_new = tuple.__new__  # of a NamedTuple, without its Python-level constructor: this is the path of every message


def pack(type: int, id: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """A frame as bytes."""
    return HEADER.pack(len(payload), type, flags, 0, id) + payload


def begin(rest: int, first: Union[bytes, bytearray, memoryview]) -> bytes:
    """The payload of a frame with MEMFD: ``rest`` bytes are in the file that goes with it."""
    return _REST.pack(rest) + first


def move(source: Deque[Frame], target: Deque[Frame]) -> None:
    """Move the first frame of ``source`` to the end of ``target``, in one call into C."""
    target.extend(map(deque.popleft, (source,)))


_Got = Tuple[int, List[Tuple[int, int, bytes]], int, object]  # what recvmsg_into returns


class _State(NamedTuple):
    """Where a reader is. Replaced as a whole, so that it is never half changed."""

    buffer: memoryview
    held: int  # bytes in the buffer, with those of frames that were cut
    got: List[_Got]  # one read that has not been looked at, stored there by the call itself
    frames: Deque[Frame]  # that were cut and not yet taken
    posted: int
    file: Optional[int]  # the descriptor of the frame that comes next
    spent: List[int]  # descriptors to be closed
    start: int  # where the next frame begins; not 0 only with something in ``got``


class _Limits(NamedTuple):
    """What values may have, in bytes with the encoding's own."""

    now: int
    former: int  # what is still accepted: ``now``, or more after it was lowered
    under_way: int  # … in so many bytes from here, and of the first larger frame behind them


class FrameReader:
    """Cuts frames out of a stream socket; used by one thread at a time."""

    __slots__ = ("_changes", "_limits", "_state")

    def __init__(self, value_limit: int = 0) -> None:
        """``value_limit``: the policy's limit for a message, in bytes."""
        self.begin(value_limit)
        self._changes: List[int] = []  # limits that were set and not looked at
        self._state = _new(_State, (_buffer(_FIRST), 0, [], deque(), 0, None, [], 0))

    def begin(self, value_limit: int) -> None:
        """Set the limit before anything is read."""
        self._limits = _new(_Limits, (value_limit + VALUE_SLACK, value_limit + VALUE_SLACK, 0))

    def set_limit(self, value_limit: int) -> None:
        """Another limit for a message, in bytes. Any thread may call this."""
        self._changes.append(value_limit + VALUE_SLACK)

    def take_changes(self, sock: socket.SocketType) -> None:
        """Begin to hold the guest to the limits that were set; for who could read now."""
        changes = len(self._changes)
        if not changes:
            return
        now, former, under_way = self._limits
        for limit in self._changes[:changes]:
            former = max(former, limit)
            if limit < now:
                _, held, got, _, _, _, _, _ = self._state
                unread = int.from_bytes(fcntl.ioctl(sock, termios.FIONREAD, bytes(4)), sys.byteorder)
                under_way = held + sum(each[0] for each in got) + unread
            now = limit
        self._limits = _Limits(now, former, under_way)
        del self._changes[:changes]

    @property
    def frames(self) -> Deque[Frame]:
        """The frames that are complete, oldest first; to be emptied with :func:`move` or popleft."""
        return self._state[3]

    @property
    def has_more(self) -> bool:
        """Whether the next ``read`` has something to say without new bytes."""
        return bool(self._state[3] or self._state[2])

    def read(self, sock: socket.SocketType, flags: int = 0) -> bool:
        """Read once, unless there are frames already; False at the end of the stream.

        Raises BlockingIOError, ProtocolError, or the OSError of a connection that was reset.
        """
        if self._changes:
            self.take_changes(sock)
        buffer, held, got, frames, _, _, _, _ = self._state
        if not frames and got:  # the call before was interrupted, or stopped at a bad frame
            self._cut()
            buffer, held, got, frames, _, _, _, _ = self._state
        if frames:
            return True
        room = buffer[held:] if held else buffer
        got.extend(map(sock.recvmsg_into, ((room,),), (_ROOM,), (flags | _CLOEXEC,)))
        size = got[0][0]
        if not size and not got[0][1]:
            got.clear()
            return False
        if held or size < HEADER.size or self._limits[2] or not self._one(size):
            self._cut()
        return True

    def read_again(self, sock: socket.SocketType, flags: int) -> Optional[str]:
        """The fault of a frame that was TooLarge, if it still is when all news have been heard."""
        try:
            self.read(sock, flags)
        except ProtocolError as error:
            return str(error)
        except OSError:
            pass  # the limit has been raised, and the rest of the frame is still to come
        return None

    def _one(self, got: int) -> bool:
        """Cut the read that is just one usual frame: the commonest case, in short."""
        buffer, _, reads, _, posted, file, spent, _ = self._state
        size, kind, flags, zero, id = HEADER.unpack_from(buffer)
        if size != got - HEADER.size or size > SMALL_FRAME or kind not in _USUAL or flags or zero:
            return False
        if file is not None or reads[0][1] or reads[0][2] & _CTRUNC:
            return False
        if kind == GUEST_POST or kind == ERROR:
            posted += size
        frame = _new(Frame, (kind, 0, id, bytes(buffer[HEADER.size : got]), posted))
        self._state = _new(_State, (buffer, 0, [], deque((frame,)), posted, None, spent, 0))
        return True

    def close(self) -> None:
        """Close what has come and was not claimed."""
        _, _, got, _, _, file, spent, _ = self._state
        if got or file is not None:
            spent = [*spent, *(each for each in (file, *(_memfd.only_fd(one[1]) for one in got)) if each is not None)]
        self._state = _new(_State, (_buffer(0), 0, [], deque(), 0, None, spent, 0))
        if spent:
            self._close_spent()

    def _close_spent(self) -> None:
        # Taken out of the list and closed in one call into C: never twice, whoever interrupts.
        spent = self._state.spent
        pop: Callable[[int], int] = spent.pop
        deque(map(os.close, map(pop, [-1] * len(spent))), 0)

    def _cut(self) -> None:
        buffer, held, got, _, posted, file, spent, start = self._state
        now, former, under_way = self._limits
        filled = held
        if got:
            filled += got[0][0]
            if got[0][1] or got[0][2] & _CTRUNC:
                file = self._arrived(got[0], file)
        need = HEADER.size
        cut: Deque[Frame] = deque()
        fault: Optional[ProtocolError] = None
        while filled - start >= HEADER.size and len(cut) < _AT_ONCE:
            size, kind, flags, zero, id = HEADER.unpack_from(buffer, start)
            if zero or flags or size > SMALL_FRAME or kind not in _USUAL and (kind != DONE or size):
                fault = _fault(size, kind, flags, zero, former)
                if fault:
                    break
            end = start + HEADER.size + size
            if end > filled:
                need = end - start
                break
            payload: Union[bytes, Large] = bytes(buffer[start + HEADER.size : end])
            if flags & MEMFD and kind != ERROR:
                try:
                    payload = _large(cast(bytes, payload), file, former)
                except ProtocolError as error:
                    fault = error
                    break
                size = max(len(payload), _FILE_COUNTS)
                file, spent = None, [*spent, cast(int, file)]
            if kind in (GUEST_POST, ERROR):
                posted += size
            if former > now and len(payload) > now and start >= under_way:
                former = now
            cut.append(_new(Frame, (kind, flags, id, payload, posted)))
            start = end
        more = len(cut) == _AT_ONCE and start < filled and not fault
        if file is not None and start == filled and not fault:
            fault = ProtocolError("a descriptor that belongs to no frame")
        if fault and not cut:
            raise fault
        if fault or more:  # the good frames first; the next read comes back here
            self._state = _State(buffer, filled, [(0, [], 0, None)], cut, posted, file, spent, start)
        elif start == filled < len(buffer) <= _KEEP:
            self._state = _new(_State, (buffer, 0, [], cut, posted, file, spent, 0))
        else:
            self._state = _State(*_make_room(buffer, start, filled, need), [], cut, posted, file, spent, 0)
        if under_way or former != self._limits[1]:
            self._limits = _Limits(now, former, under_way if fault or more else max(0, under_way - start))
        if spent:
            self._close_spent()

    def _arrived(self, got: _Got, file: Optional[int]) -> Optional[int]:
        """The descriptor that came with a read; there may be one, and no other may be waiting."""
        fd = _memfd.only_fd(got[1])
        if fd is None:
            raise ProtocolError("a descriptor did not arrive: this process can open no more files (ulimit -n), or several came at once")
        if got[2] & _CTRUNC or (file is not None and file != fd):
            raise ProtocolError("more descriptors than frames that go with one")
        return fd


def _large(payload: bytes, file: Optional[int], limit: int) -> Large:
    """The value whose larger part lies in the file."""
    if file is None:
        raise ProtocolError("a value in a file in memory, without the file's descriptor")
    if len(payload) <= _REST.size:
        raise ProtocolError(f"a value in a file in memory, in a frame of {len(payload)} bytes")
    (rest,) = _REST.unpack_from(payload)
    if rest < _memfd.LEAST or rest + len(payload) - _REST.size > limit:
        wrong = ProtocolError if rest < _memfd.LEAST else TooLarge
        raise wrong(f"a file in memory of {rest} bytes; {_memfd.LEAST} to {limit} are allowed")
    try:
        return Large(payload[_REST.size :], _memfd.take(file, rest))
    except _memfd.Refused as refused:
        raise ProtocolError(str(refused)) from None
    except OSError as error:
        raise ProtocolError(f"a file in memory, which this process cannot map: {error.strerror or error}") from None


def _fault(size: int, kind: int, flags: int, zero: int, limit: int) -> Optional[ProtocolError]:
    if not READY <= kind <= NOTICE:
        return ProtocolError(f"a frame of type {kind}, which no guest may send")
    value = kind in (RESULT, GUEST_POST)
    if zero or flags & ~(OF_EXEC if kind == ERROR else MEMFD if value else 0):
        return ProtocolError(f"a frame of type {kind} with reserved bits set")
    most = limit if value else 0 if kind == DONE else SMALL_FRAME
    if size > most:
        return (TooLarge if value else ProtocolError)(f"a frame of type {kind} with {size} bytes; at most {most} are allowed")
    return None


def _make_room(buffer: memoryview, start: int, filled: int, need: int) -> Tuple[memoryview, int]:
    """The buffer to go on with, which is never full, and how much of it is filled."""
    if start == 0 and filled < len(buffer):
        return buffer, filled
    held = filled - start
    # Twice what has come, never what was announced: memory costs the guest as much as us.
    rest = _buffer(max(_CHUNK, min(need, 2 * held)))
    rest[:held] = buffer[start:filled]
    return rest, held


def _buffer(size: int) -> memoryview:
    return memoryview(bytearray(size))
