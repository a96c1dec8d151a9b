"""stdout and stderr of guest code, as frames.

sys.stdout and sys.stderr write frames directly. What C code and child
processes write to fds 1 and 2 goes through a pipe that the main thread empties
when the kernel announces it; a writer of more than a pipe holds waits for that.
"""

from __future__ import annotations

import fcntl
import io
import posix

from . import frames
from .signals import SIGPIPES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .channel import Channel


HIGH = 200  # where descriptors of the agent are, if there may be so many


class Output:
    """Everything that the guest writes, counted, and cut at the policy's limit."""

    def __init__(self, channel: Channel, limit: int) -> None:
        self.channel = channel
        self.limit = limit
        self.left = limit
        self.cut = False
        self.request = 0  # the id that frames carry

    def resize(self, limit: int) -> None:
        """A reload has changed the limit: what was written counts."""
        self.left += limit - self.limit  # below 0: more was written
        self.limit = limit
        self.cut = self.cut and self.left <= 0

    def write(self, kind: int, data: bytes) -> None:
        if self.cut:
            return
        allowed = data[: max(0, self.left)]
        self.left -= len(allowed)
        for start in range(0, len(allowed), frames.STREAM_LIMIT):
            self.channel.send(kind, self.request, allowed[start : start + frames.STREAM_LIMIT])
        if len(allowed) < len(data) and not self.cut:
            self.cut = True
            notice = '{"output":"cut","limit":%d}' % self.limit
            self.channel.send(frames.NOTICE, 0, notice.encode())


class _Stream(io.RawIOBase):
    """The raw file below sys.stdout or sys.stderr."""

    def __init__(self, output: Output, kind: int) -> None:
        super().__init__()
        self._output = output
        self._kind = kind
        self.name = "<stdout>" if kind == frames.STDOUT else "<stderr>"
        self.mode = "wb"

    def fileno(self) -> int:
        return 1 if self._kind == frames.STDOUT else 2

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.closed:
            raise ValueError("write to closed file")
        whole = bytes(data)
        if self._output.channel.open:
            self._output.write(self._kind, whole)
            return len(whole)
        return posix.write(self.fileno(), whole)  # a child after fork


def text_stream(output: Output, kind: int) -> io.TextIOWrapper:
    """A text file for sys.stdout or sys.stderr that flushes at each line."""
    buffer = io.BufferedWriter(_Stream(output, kind), 8192)
    errors = "strict" if kind == frames.STDOUT else "backslashreplace"
    text = io.TextIOWrapper(buffer, "utf-8", errors, "\n", line_buffering=True)
    text.mode = "w"  # type: ignore[misc]
    return text


class Pipes:
    """The reading ends of what is behind fds 1 and 2."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._ends: dict[int, int] = {}
        for fd, kind in ((1, frames.STDOUT), (2, frames.STDERR)):
            reader, writer = posix.pipe()  # close-on-exec, both
            posix.dup2(writer, fd, True)
            posix.close(writer)
            high = move_high(reader)
            posix.set_blocking(high, False)
            _announce(high, SIGPIPES)
            self._ends[high] = kind

    def drain(self) -> None:
        """Sends what has been written so far."""
        for fd, kind in list(self._ends.items()):
            while True:
                try:
                    data = posix.read(fd, frames.STREAM_LIMIT)
                except BlockingIOError:
                    break
                except OSError:  # the guest closed it
                    data = b""
                if not data:
                    self._ends.pop(fd, None)
                    break
                self._output.write(kind, data)

    def abandon(self) -> None:
        """After fork, in the child: it writes into them, the parent reads."""
        for fd in self._ends:
            try:
                posix.close(fd)
            except OSError:
                pass
        self._ends.clear()


def _announce(fd: int, signum: int) -> None:
    """Makes the kernel send signum to this process when fd can be read."""
    fcntl.fcntl(fd, 10, signum)  # F_SETSIG, which the module does not name
    fcntl.fcntl(fd, fcntl.F_SETOWN, posix.getpid())
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | fcntl.FASYNC)


def move_high(fd: int) -> int:
    """Moves a descriptor out of the way of guest code, close-on-exec; returns the new one."""
    for lowest in (HIGH, 100, 10):
        try:
            high = int(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest))
        except OSError:  # RLIMIT_NOFILE is lower than that
            continue
        posix.close(fd)
        return high
    return fd
