"""What is on its way to a guest.

Nothing here blocks: the kernel takes what it can now, the I/O thread brings the rest when the guest
reads (:meth:`Outbox.flush`), and a guest that does not read fills a bounded queue and no more.

Like the reader, it survives a KeyboardInterrupt between any two bytecodes without losing or repeating a
byte: the stream's position is the sum of what ``send`` returned, recorded inside one call into C.
"""

from __future__ import annotations

import socket
import sys
from collections import deque
from typing import Deque, List, NamedTuple, Optional

from ._lock import make_lock
from ._memfd import Memfd

_NOW = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

LIMIT = 64 << 20  # bytes that may wait for a guest; one frame alone may be larger
_new = tuple.__new__  # of a NamedTuple, without its Python-level constructor: this is the path of every message
_FILES = 16  # frames with a file that may wait for it


class OutboxFull(Exception):
    """The guest does not read and too much waits for it; the text gives the figures."""


class _Entry(NamedTuple):
    end: int  # its position in the stream
    frame: bytes
    file: Optional[Memfd]  # goes with the first byte


class Outbox:
    """The frames that a guest has not taken yet, oldest first. Any thread may use it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = make_lock()
        self._queue: Deque[_Entry] = deque()
        self._sent: List[int] = [0]  # its sum is the position that has been reached
        self._closed = False

    def put(self, frame: bytes, file: Optional[Memfd] = None) -> bool:
        """Send or queue one frame; False if something waits, and ``flush`` must be called later.

        Raises OutboxFull, or the OSError of a channel whose guest is gone.
        """
        with self._lock:
            queue = self._queue
            if queue:
                end = queue[-1].end
                self._check_room(end, len(frame), file)
            else:
                end = sum(self._sent)
            queue.append(_new(_Entry, (end + len(frame), frame, file)))
            return self._send()

    def _check_room(self, end: int, size: int, file: Optional[Memfd]) -> None:
        files = [each.file for each in self._queue if each.file is not None]
        waiting = end - sum(self._sent) + sum(each.size for each in files)
        if waiting > 0 and waiting + size + (file.size if file else 0) > LIMIT:
            raise OutboxFull(f"{waiting} bytes wait for a guest that does not read (limit {LIMIT})")
        if file and len(files) >= _FILES:
            raise OutboxFull(f"{len(files)} large values wait for a guest that does not read (limit {_FILES})")

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
            end, frame, file = queue[0]
            if end <= reached:
                queue.popleft()
                continue
            try:
                if end - reached != len(frame):
                    sent.extend(map(self._sock.send, (memoryview(frame)[reached - end :],), (_NOW,)))
                elif file is None:
                    sent.extend(map(self._sock.send, (frame,), (_NOW,)))
                else:
                    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, file.fd.to_bytes(4, sys.byteorder))
                    sent.extend(map(self._sock.sendmsg, ((frame,),), ((rights,),), (_NOW,)))
            except BlockingIOError:
                return False
            if sent[0] + sent[1] == end:
                queue.popleft()
        return True
