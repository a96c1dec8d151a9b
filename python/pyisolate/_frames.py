"""The frames of a guest's channel, as bytes and out of bytes.

::

     0      4      5      6       8        12
     +------+------+------+-------+---------+-----------...
     | size | type | flags| zero  | id      | payload (size bytes)      all big endian
     +------+------+------+-------+---------+-----------...

    host → guest   EXEC source · CALL value · POST value · INTERRUPT · CANCEL   (and CONFIG, the supervisor's)
    guest → host   READY json · DONE · RESULT value · ERROR json · POST value · STDOUT · STDERR · NOTICE json

Everything read here is hostile: a frame that breaks a rule is a :class:`ProtocolError`, and no length
that a guest claims is believed before that many bytes have come.

Reading survives a KeyboardInterrupt between any two bytecodes, without losing or repeating a byte: what
the kernel gives is recorded inside one call into C, and every other step of the state is one assignment.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from typing import Deque, List, NamedTuple, Optional, Tuple

HEADER = struct.Struct("!IBBHI")

EXEC, CALL, POST, INTERRUPT, CANCEL = 1, 2, 3, 4, 5
READY, DONE, RESULT, ERROR, GUEST_POST, STDOUT, STDERR, NOTICE = 16, 17, 18, 19, 20, 21, 22, 23

_USUAL = frozenset((RESULT, ERROR, GUEST_POST, STDOUT, STDERR))  # with up to SMALL_FRAME bytes, always fine

OF_EXEC = 1  # flag of ERROR: the exception of an exec, hence also the next item of recv

SMALL_FRAME = 64 << 10  # limit of a payload that is not a value: output and JSON
VALUE_SLACK = 64 << 10  # what the encoding of a value may add to the policy's message limit

_CHUNK = 32 << 10  # first size of the read buffer
_KEEP = 256 << 10  # a buffer larger than this is given back when it is empty


class ProtocolError(Exception):
    """The guest broke the rules of the channel; the text says which rule."""


class Frame(NamedTuple):
    """One frame; ``posted`` is the sum of the payloads of all posts and errors up to and including it."""

    type: int
    flags: int
    id: int
    payload: bytes
    posted: int


_new = tuple.__new__  # of a NamedTuple, without its Python-level constructor: this is the path of every message


def pack(type: int, id: int, payload: bytes = b"") -> bytes:
    """A frame as bytes."""
    return HEADER.pack(len(payload), type, 0, 0, id) + payload


def move(source: Deque[Frame], target: Deque[Frame]) -> None:
    """Move the first frame of ``source`` to the end of ``target``, in one call into C."""
    target.extend(map(deque.popleft, (source,)))


class FrameReader:
    """Cuts frames out of a stream socket; used by one thread at a time."""

    __slots__ = ("_state", "_value_limit")

    def __init__(self, value_limit: int) -> None:
        """``value_limit``: the policy's limit for a message, in bytes."""
        self._value_limit = value_limit + VALUE_SLACK
        # The buffer; how much each read added to it; the frames that were cut and not yet taken; the
        # sum ``posted``. Replaced as a whole, so that it is never half changed.
        self._state: Tuple[memoryview, List[int], Deque[Frame], int] = (_buffer(_CHUNK), [0], deque(), 0)

    @property
    def frames(self) -> Deque[Frame]:
        """The frames that are complete, oldest first; to be emptied with :func:`move` or popleft."""
        return self._state[2]

    @property
    def has_more(self) -> bool:
        """Whether the next ``read`` has something to say without new bytes."""
        return bool(self._state[2]) or len(self._state[1]) > 1

    def read(self, sock: socket.socket, flags: int = 0) -> bool:
        """Read once, unless there are frames already; False at the end of the stream.

        Raises BlockingIOError, ProtocolError, or the OSError of a connection that was reset.
        """
        buffer, reads, frames, _ = self._state
        if not frames and len(reads) > 1:  # the call before was interrupted, or stopped at a bad frame
            self._cut()
            buffer, reads, frames, _ = self._state
        if frames:
            return True
        room = buffer[reads[0] :] if reads[0] else buffer
        reads.extend(map(sock.recv_into, (room,), (0,), (flags,)))
        if not reads[-1]:
            return False
        self._cut()
        return True

    def _cut(self) -> None:
        buffer, reads, _, posted = self._state
        filled = sum(reads)
        start, need = 0, HEADER.size
        cut: Deque[Frame] = deque()
        while filled - start >= HEADER.size:
            size, kind, flags, zero, id = HEADER.unpack_from(buffer, start)
            if zero or flags or size > SMALL_FRAME or kind not in _USUAL:
                fault = self._fault(size, kind, flags, zero)
                if fault and cut:  # the good frames first; the next read comes back here
                    rest, held = _make_room(buffer, start, filled, need)
                    self._state = (rest, [*held, 0], cut, posted)
                    return
                if fault:
                    raise ProtocolError(fault)
            end = start + HEADER.size + size
            if end > filled:
                need = end - start
                break
            if kind in (GUEST_POST, ERROR):
                posted += size
            cut.append(_new(Frame, (kind, flags, id, bytes(buffer[start + HEADER.size : end]), posted)))
            start = end
        rest, held = (buffer, [0]) if start == filled and len(buffer) <= _KEEP else _make_room(buffer, start, filled, need)
        self._state = (rest, held, cut, posted)

    def _fault(self, size: int, kind: int, flags: int, zero: int) -> Optional[str]:
        if not READY <= kind <= NOTICE:
            return f"a frame of type {kind}, which no guest may send"
        if zero or flags & ~(OF_EXEC if kind == ERROR else 0):
            return f"a frame of type {kind} with reserved bits set"
        limit = self._value_limit if kind in (RESULT, GUEST_POST) else 0 if kind == DONE else SMALL_FRAME
        if size > limit:
            return f"a frame of type {kind} with {size} bytes; at most {limit} are allowed"
        return None


def _make_room(buffer: memoryview, start: int, filled: int, need: int) -> Tuple[memoryview, List[int]]:
    """The buffer to go on with, which is never full, and how much of it is filled."""
    if start == 0 and filled < len(buffer):
        return buffer, [filled]
    held = filled - start
    # Twice what has come, never what was announced: memory costs the guest as much as us.
    rest = _buffer(max(_CHUNK, min(need, 2 * held)))
    rest[:held] = buffer[start:filled]
    return rest, [held]


def _buffer(size: int) -> memoryview:
    return memoryview(bytearray(size))
