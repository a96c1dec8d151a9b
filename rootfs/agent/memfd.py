"""Large payloads beside the channel: sealed files in memory, passed as descriptors.

Both ends use this one file (the client has a link to it), and neither believes
what it gets: a file counts only when nobody can change, shrink or grow it any
more, it has the size that was announced, and all of its memory is there already
(the pages of a hole would be the reader's).

The memory belongs to the cgroup of whoever wrote it, until the last mapping ends.
"""

from __future__ import annotations

import fcntl
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Optional, Sequence, Union

    Data = Union[bytes, bytearray, memoryview]

SUPPORTED = hasattr(posix, "memfd_create")
LEAST = 256 << 10  # bytes that a file must have, and from which on one is used

_ADD_SEALS, _GET_SEALS = 1033, 1034  # F_…, which not every build of the module names
SEALS = 0x1 | 0x2 | 0x4 | 0x8  # SEAL, SHRINK, GROW, WRITE
_CLOEXEC, _ALLOW_SEALING, _NOEXEC_SEAL = 1, 2, 8
_PARTS = 64  # buffers handed to the kernel at once


class Refused(ValueError):
    """The other end sent a descriptor that is not what it has to be; the text says why."""


class Memfd:
    """A file in memory that is ours to close; closed when it is dropped."""

    __slots__ = ("fd", "size")

    def __init__(self, parts: Sequence[Data]) -> None:
        """Writes the parts into a new file and seals it."""
        self.fd = _create()
        self.size = 0
        rest = [memoryview(part) for part in parts]
        while rest:
            written = posix.writev(self.fd, rest[:_PARTS])
            self.size += written
            while rest and written >= rest[0].nbytes:
                written -= rest.pop(0).nbytes
            if written:
                rest[0] = rest[0][written:]
        fcntl.fcntl(self.fd, _ADD_SEALS, SEALS)

    def __del__(self) -> None:
        try:
            posix.close(self.fd)
        except AttributeError:  # it could not be made
            pass


def _create() -> int:
    try:  # it shall not be a program either: since Linux 6.3 a file can say so for good
        return posix.memfd_create("psi", _CLOEXEC | _ALLOW_SEALING | _NOEXEC_SEAL)
    except OSError:
        return posix.memfd_create("psi", _CLOEXEC | _ALLOW_SEALING)


def take(fd: int, size: int) -> memoryview:
    """The content of a file that the other end has sent, as read-only memory. The descriptor stays open.

    Errors: Refused; OSError if this process has no memory or descriptor left.
    """
    try:
        seals = fcntl.fcntl(fd, _GET_SEALS)
    except OSError:
        raise Refused("a descriptor that is no file in memory") from None
    if seals & SEALS != SEALS:
        raise Refused(f"a file in memory with the seals {seals:#x}, without all of {SEALS:#x}: it could still change")
    stat = posix.fstat(fd)
    if stat.st_size != size:
        raise Refused(f"a file in memory of {stat.st_size} bytes, announced with {size}")
    if stat.st_blocks * 512 < size:
        raise Refused(f"a file in memory of {size} bytes with holes: only {stat.st_blocks * 512} are there")
    return _map(fd, size)


def _map(fd: int, size: int) -> memoryview:
    """Maps it where the mmap module is to be had: a guest's import list may hide it; else reads it."""
    try:
        import mmap
    except ImportError:
        return _read(fd, size)
    # Private: before Linux 6.7 a sealed file cannot be mapped shared, not even to be read.
    found: Any = mmap.mmap(fd, size, mmap.MAP_PRIVATE, mmap.PROT_READ)
    return memoryview(found)


def _read(fd: int, size: int) -> memoryview:
    room = memoryview(bytearray(size))
    at = 0
    while at < size:
        read = posix.preadv(fd, [room[at:]], at)
        if not read:
            raise Refused("a file in memory that ends early")
        at += read
    return room.toreadonly()


def only_fd(ancillary: Sequence[tuple[int, int, bytes]]) -> Optional[int]:
    """The one descriptor that recvmsg with room for one has received, if it has."""
    for level, kind, data in ancillary:
        if level == 1 and kind == 1 and len(data) == 4:  # SOL_SOCKET, SCM_RIGHTS
            return int.from_bytes(data, sys.byteorder)
    return None
