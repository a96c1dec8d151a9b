"""What is on its way to a guest.

Nothing here blocks: the kernel takes what it can now, the I/O thread brings the rest when the guest
reads (:meth:`Outbox.flush`), and a guest that does not read fills a bounded queue and no more.

Like the reader, it survives a KeyboardInterrupt between any two bytecodes without losing or repeating a
byte: the stream's position is the sum of what ``send`` returned, recorded inside one call into C.
"""

from __future__ import annotations

import fcntl
import socket
import sys
import termios
from collections import deque
from typing import Deque, List, Optional, Tuple

from ._lock import make_lock
from ._memfd import Memfd

_NOW = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

LIMIT = 64 << 20  # bytes that may wait for a guest; one frame alone may be larger
_FILES = 16  # files that may be on their way to a guest, with LIMIT bytes


_Entry = Tuple[int, bytes, Optional[Memfd]]  # where it ends in the stream, the frame, and what goes with its first byte


class OutboxFull(Exception):
    """The guest does not read and too much waits for it; the text gives the figures."""


class Outbox:
    """The frames that a guest has not taken yet, oldest first. Any thread may use it."""

    _sock: socket.SocketType

    def __init__(self) -> None:
        """It is of use after :meth:`open`."""
        self._lock = make_lock()
        self._queue: Deque[_Entry] = deque()
        self._sent: List[int] = [0]  # its sum is the position that has been reached
        self._flying = 0  # bytes of the files that went since the guest had last read everything
        self._files = 0  # … and how many they are
        self._closed = False

    def open(self, sock: socket.SocketType) -> None:
        """Where the frames go."""
        self._sock = sock

    def put(self, frame: bytes, file: Optional[Memfd] = None) -> bool:
        """Send or queue one frame; False if something waits, and ``flush`` must be called later.

        Raises OutboxFull, or the OSError of a channel whose guest is gone.
        """
        with self._lock:
            queue = self._queue
            begin = reached = sum(self._sent)
            if queue:
                begin = queue[-1][0]
                waiting = begin - reached
                if waiting and waiting + len(frame) > LIMIT:
                    raise OutboxFull(f"{waiting} bytes wait for a guest that does not read (limit {LIMIT})")
            queue.append((begin + len(frame), frame, file))
            return self._send()

    def takes_file(self, size: int) -> bool:
        """Whether a value may go beside the channel in a file of this size: a frame with one is short, and
        would not be stopped by the kernel when the guest does not read, while the file is our memory."""
        with self._lock:
            if self._files and (self._flying + size > LIMIT or self._files >= _FILES):
                if self._queue or _unread(self._sock):
                    return False
                self._flying = self._files = 0
            self._flying += size
            self._files += 1
            return True

    def flush(self) -> bool:
        """Send what the kernel takes now; True if nothing is left. Raises OSError as ``put`` does."""
        with self._lock:
            return self._send()

    @property
    def waits(self) -> bool:
        """Whether something is left for ``flush``."""
        return bool(self._queue)

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
        sent = self._sent
        while queue:
            end, frame, file = queue[0]
            left = end - sum(sent)
            if not left:
                queue.popleft()
                self._sent = sent = [end]
                continue
            try:
                if left != len(frame):
                    sent.extend(map(self._sock.send, (memoryview(frame)[-left:],), (_NOW,)))
                elif file is None:
                    sent.extend(map(self._sock.send, (frame,), (_NOW,)))
                else:
                    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, file.fd.to_bytes(4, sys.byteorder))
                    sent.extend(map(self._sock.sendmsg, ((frame,),), ((rights,),), (_NOW,)))
            except BlockingIOError:
                return False
        return True


def _unread(sock: socket.SocketType) -> int:
    """What of a socket's output has not been read: 0 if nothing."""
    return int.from_bytes(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
