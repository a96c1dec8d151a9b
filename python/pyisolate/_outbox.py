"""What is on its way to a guest.

Nothing here blocks: the kernel takes what it can now, the I/O thread brings the rest when the guest
reads (:meth:`Outbox.flush`), and a guest that does not read fills a bounded queue and no more.

Like the reader, it survives a KeyboardInterrupt between any two bytecodes without losing or repeating a
byte: the stream's position is the sum of what ``send`` returned, recorded inside one call into C.
"""

from __future__ import annotations

import socket
from collections import deque
from typing import Deque, List, Tuple

from ._lock import make_lock

_NOW = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL

LIMIT = 64 << 20  # bytes that may wait for a guest; one frame alone may be larger


class OutboxFull(Exception):
    """The guest does not read and too much waits for it; the text gives the figures."""


class Outbox:
    """The frames that a guest has not taken yet, oldest first. Any thread may use it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = make_lock()
        self._queue: Deque[Tuple[int, bytes]] = deque()  # (position in the stream of its end, bytes)
        self._sent: List[int] = [0]  # its sum is the position that has been reached
        self._closed = False

    def put(self, frame: bytes) -> bool:
        """Send or queue one frame; False if something waits, and ``flush`` must be called later.

        Raises OutboxFull, or the OSError of a channel whose guest is gone.
        """
        with self._lock:
            reached = end = sum(self._sent)
            if self._queue:
                end = self._queue[-1][0]
                if end > reached and end - reached + len(frame) > LIMIT:
                    raise OutboxFull(f"{end - reached} bytes wait for a guest that does not read (limit {LIMIT})")
            self._queue.append((end + len(frame), frame))
            return self._send()

    def flush(self) -> bool:
        """Send what the kernel takes now; True if nothing is left. Raises OSError as ``put`` does."""
        with self._lock:
            return self._send()

    def fileno(self) -> int:
        """The socket to poll for writing, -1 when it is closed."""
        return self._sock.fileno()

    def close(self) -> None:
        """Drop what waits and close the socket."""
        with self._lock:
            self._closed = True
            self._queue.clear()
            self._sock.close()

    def _send(self) -> bool:
        if self._closed:
            raise BrokenPipeError("the channel is closed")
        queue = self._queue
        while queue:
            sent = self._sent
            if len(sent) > 1:
                self._sent = sent = [sum(sent)]
            reached = sent[0]
            end, frame = queue[0]
            if end <= reached:
                queue.popleft()
                continue
            rest = frame if end - reached == len(frame) else memoryview(frame)[reached - end :]
            try:
                sent.extend(map(self._sock.send, (rest,), (_NOW,)))
            except BlockingIOError:
                return False
            if sent[1] == len(rest):
                queue.popleft()
        return True
