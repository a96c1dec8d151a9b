"""Large values beside the channel: what arrives, what it costs, and what a hostile guest makes of it."""

from __future__ import annotations

import fcntl
import gc
import os
import socket
import struct
import threading
import time
import unittest
from pathlib import Path
from typing import Dict

import pyisolate as psi
from pyisolate import _frames as wire
from pyisolate import _memfd
from pyisolate._channel import ChannelClosed
from pyisolate._frames import FrameReader, ProtocolError
from pyisolate._outbox import Outbox

from .guests import FIND_CHANNEL, GuestTest, rss
from .test_hostile import HostileTest

MIB = 1 << 20
LEAST = _memfd.LEAST

BESIDE = FIND_CHANNEL + """
import fcntl, mmap, socket
LEAST = 256 << 10
def memfd(size=LEAST, written=None, seals=15):
    fd = os.memfd_create("x", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, b"x" * (size if written is None else written))
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, 1033, seals)
    return fd
def beside(size=LEAST, begin=b"S", **fields):
    return frame(fields.pop("kind", 20), struct.pack("!Q", size) + begin, flags=2, **fields)
def send(data, *fds):
    with socket.socket(fileno=os.dup(channel)) as s:
        s.setblocking(True)
        socket.send_fds(s, [data], fds)
"""


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def shared_memory() -> int:
    """The machine's memory in tmpfs and files in memory, in bytes."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("Shmem:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no Shmem")


class Beside(GuestTest):
    def test_both_ways(self) -> None:
        sandbox = self.spawn()
        sandbox.exec("def echo(x): return x\ndef chatter():\n  while True: post(recv())")
        data, text = os.urandom(MIB), "grüße " * 200_000
        values = [data, text, bytearray(data), [data, {"text": text}], [data] * 3, ["x" * 1000] * 1000, "é" * LEAST]
        sandbox.exec("pass", timeout=5)
        before = descriptors()
        for value in values:
            self.assertEqual(sandbox.call("echo", value), value)
        sandbox.exec("chatter()")
        for value in values:
            sandbox.post(value)
        for value in values:
            self.assertEqual(sandbox.recv(timeout=10), value)
        gc.collect()
        self.assertEqual(descriptors(), before)

    def test_a_guest_with_an_import_list_loads_no_mmap(self) -> None:
        sandbox = self.spawn(allowed_imports=["math", "sys"])
        sandbox.exec("import sys\ndef modules(x): return len(x), [m for m in ('mmap', '_ctypes', 'ctypes') if m in sys.modules]")
        self.assertEqual(sandbox.call("modules", b"x" * MIB), (MIB, []))

    def test_what_is_sealed_cannot_change(self) -> None:
        """Neither by a write, nor through a mapping that was there before, nor by truncation."""
        sandbox = self.spawn()
        sandbox.exec(BESIDE + """
fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
os.write(fd, b"x" * LEAST)
held = mmap.mmap(fd, LEAST)
try: fcntl.fcntl(fd, 1033, 15)
except OSError as error: post(error.errno)   # EBUSY: it can still be written
held.close()
fcntl.fcntl(fd, 1033, 15)
send(beside(), fd)
for attempt in (lambda: os.pwrite(fd, b"y", 0), lambda: os.ftruncate(fd, 0), lambda: os.ftruncate(fd, 1 << 30),
                lambda: mmap.mmap(fd, LEAST), lambda: os.posix_fallocate(fd, 0, 1 << 20), lambda: fcntl.fcntl(fd, 1033, 0)):
    try: attempt()
    except OSError as error: post(error.errno)
    else: post("done")
""")
        self.assertEqual(sandbox.recv(timeout=5), 16)
        self.assertEqual(sandbox.recv(timeout=5), "x" * LEAST)
        for _ in range(6):
            self.assertEqual(sandbox.recv(timeout=5), 1)

    def test_a_guest_that_does_not_read(self) -> None:
        """What is on its way to it is bounded, in files too, which are not in this process's RSS."""
        sandbox = self.spawn({"mem": "1GiB"})
        sandbox.exec("import time; time.sleep(1000)")
        before = shared_memory()
        with self.assertRaisesRegex(psi.SandboxError, "does not read"):
            for _ in range(100):
                sandbox.post(b"x" * (10 * MIB))
        self.assertLess(shared_memory() - before, 300 * MIB)  # others use it too
        sandbox.close()

    def test_the_memory_is_the_guests(self) -> None:
        """Pages of files in memory count for the guest's cgroup, also while they are on their way."""
        sandbox = self.spawn({"mem": "64MiB"})
        sandbox.exec("while True: post(b'x' * (4 << 20))")
        before = rss()
        held = []
        with self.assertRaises(ChannelClosed):
            while len(held) < 40:
                held.append(sandbox._channel.receive(time.monotonic() + 10))
        with self.assertRaises(psi.MemoryExceeded):
            sandbox.recv(timeout=10)
        self.assertLess(rss() - before, 40 * MIB)


class HostileFiles(HostileTest):
    def assert_broken(self, code: str, says: str) -> None:
        gc.collect()
        before = descriptors()
        super().assert_broken(BESIDE + code, says)
        self.doCleanups()
        gc.collect()
        self.assertLessEqual(descriptors(), before)

    def test_seals(self) -> None:
        for seals in (0, 1, 2, 4, 8, 16, 7, 14, 11, 13, 1 | 2 | 4 | 16):  # 16: F_SEAL_FUTURE_WRITE
            with self.subTest(seals=seals):
                self.assert_broken(f"send(beside(), memfd(seals={seals}))", "without all of 0xf")

    def test_sizes(self) -> None:
        self.assert_broken("send(beside(LEAST * 2), memfd())", "announced with 524288")
        self.assert_broken("send(beside(LEAST), memfd(LEAST + 1))", "of 262145 bytes, announced")
        self.assert_broken("send(beside(LEAST - 1), memfd(LEAST - 1))", "262144 to")
        self.assert_broken("send(beside(0), memfd(0))", "262144 to")
        self.assert_broken("send(beside(1 << 40), memfd(1 << 40, 10))", "262144 to")
        self.assert_broken("send(beside((1 << 64) - 1), memfd())", "262144 to")

    def test_holes(self) -> None:
        """A page of a hole would be allocated by whoever reads it."""
        self.assert_broken("send(beside(32 << 20), memfd(32 << 20, 10))", "with holes: only 4096")

    def test_what_is_no_file_in_memory(self) -> None:
        for what in ("os.pipe()[0]", "os.open('/dev/null', os.O_RDONLY)", "os.open('/', os.O_RDONLY)", "channel",
                     "os.open('/proc/self/mem', os.O_RDONLY)", "os.eventfd(1)"):  # fmt: skip
            with self.subTest(what=what):
                self.assert_broken(f"send(beside(), {what})", "no file in memory")
        self.assert_broken(
            "fd = os.open('/dev/shm/x', os.O_RDWR | os.O_CREAT)\nos.write(fd, b'x' * LEAST)\nsend(beside(), fd)", "seals 0x1"
        )

    def test_frames_without_descriptors_and_descriptors_without_frames(self) -> None:
        self.assert_broken("write(beside())", "without the file's descriptor")
        self.assert_broken("send(frame(20, b'Sx'), memfd())", "belongs to no frame")
        self.assert_broken("send(frame(20, b'Sx'), *[memfd()] * 50)", "more descriptors than frames")
        self.assert_broken("send(frame(20, b'Sxxxxx')[:9], memfd())\nsend(frame(20, b'Sxxxxx')[9:], memfd())", "more descr")
        self.assert_broken("send(beside(kind=21), memfd())", "reserved bits")
        self.assert_broken("send(beside(kind=18, id=1), memfd())", "another kind")
        self.assert_broken("send(frame(20, b'123', flags=2), memfd())", "frame of 3 bytes")

    def test_values(self) -> None:
        self.assert_broken("send(beside(begin=b'Z'), memfd())", "first byte")
        self.assert_broken("send(beside(begin=b'Sx'), memfd())", "split")
        self.assert_broken("send(beside(begin=b'J'), memfd())", "malformed JSON")
        self.assert_broken("send(beside(begin=b'B\\0\\0\\0\\1['), memfd())", "sizes")

    def test_half_of_a_frame_that_never_goes_on(self) -> None:
        sandbox = self.spawn()
        before = descriptors()
        sandbox.exec(BESIDE + "import time\nfor _ in range(1): send(beside()[:10], memfd())\ntime.sleep(1000)")
        with self.assertRaises(psi.TimeoutError):
            sandbox.recv(timeout=0.5)
        self.assertLessEqual(descriptors(), before + 1)
        sandbox.close()
        self.assertLess(descriptors(), before)

    def test_a_flood_of_files_is_bounded(self) -> None:
        """Nobody receives: neither mappings nor descriptors pile up here, and it is the guest that waits."""
        sandbox = self.spawn({"mem": "1GiB"})
        before, memory = descriptors(), rss()
        sandbox.exec(BESIDE + "fd = memfd()\nwhile True: send(beside(), fd)")
        end = time.monotonic() + 2
        while time.monotonic() < end:
            sandbox._channel.read_now()
        self.assertLess(descriptors(), before + 20)
        self.assertLess(rss() - memory, 40 * MIB)
        for _ in range(100):
            self.assertEqual(len(sandbox.recv(timeout=5)), LEAST)


class Descriptors(unittest.TestCase):
    def setUp(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.addCleanup(self.ours.close)
        self.addCleanup(self.theirs.close)

    def test_descriptors_that_cannot_be_taken(self) -> None:
        """Not the guest's fault: the text says what is."""
        import resource

        file = _memfd.Memfd([b"x" * LEAST])
        frame = wire.pack(wire.GUEST_POST, 0, wire.begin(LEAST, b"S"), wire.MEMFD)
        socket.send_fds(self.theirs, [frame], [file.fd])
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            with self.assertRaisesRegex(ProtocolError, "ulimit -n"):
                FrameReader(8 * MIB).read(self.ours)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

    def test_the_outbox_sends_each_file_with_its_frame(self) -> None:
        before = descriptors()
        outbox = Outbox()
        outbox.open(self.ours)
        for size in range(5):
            file = _memfd.Memfd([b"%d" % size * LEAST])
            outbox.put(wire.pack(wire.POST, 0, b"x" * 30_000))
            outbox.put(wire.pack(wire.GUEST_POST, 0, wire.begin(LEAST, b"S"), wire.MEMFD), file)
        del file
        thread = threading.Thread(target=lambda: [time.sleep(0.01) for _ in range(500) if not outbox.flush()])
        thread.start()
        self.theirs.settimeout(5)
        data = b""
        fds: Dict[int, int] = {}
        while len(fds) < 5:
            more, ancillary, _, _ = self.theirs.recvmsg(10_000, 20)
            data += more
            for _, _, content in ancillary:
                (fds[len(data)],) = struct.unpack("i", content)
        thread.join()
        for number, fd in enumerate(fds.values()):
            self.assertEqual(os.pread(fd, 10, 0), b"%d" % number * 10)
            os.close(fd)
        self.assertEqual(descriptors(), before)

    def test_files_on_their_way_are_bounded(self) -> None:
        """By bytes and by number, until the guest has read everything."""
        outbox = Outbox()
        outbox.open(self.ours)
        self.assertTrue(outbox.takes_file(500 * MIB))  # alone, any size
        outbox.put(b"frame", _memfd.Memfd([b"x" * LEAST]))
        self.assertFalse(outbox.takes_file(MIB))
        self.theirs.recv(100)
        taken = 0
        while outbox.takes_file(LEAST):
            outbox.put(b"frame", _memfd.Memfd([b"x" * LEAST]))
            taken += 1
        self.assertEqual(taken, 16)
        self.theirs.recv(10)
        self.assertFalse(outbox.takes_file(LEAST))
        while not outbox.takes_file(LEAST):
            self.theirs.recv(1000)

    def test_interrupts_lose_no_descriptor(self) -> None:
        """The reader can stop anywhere, and is closed in any state."""
        before = descriptors()
        file = _memfd.Memfd([b"x" * LEAST])
        frame = wire.pack(wire.GUEST_POST, 0, wire.begin(LEAST, b"S"), wire.MEMFD)
        for cut in range(1, len(frame), 3):
            ours, theirs = socket.socketpair()
            socket.send_fds(theirs, [frame[:cut]], [file.fd])
            reader = FrameReader(8 * MIB)
            reader.read(ours)
            self.assertEqual(descriptors(), before + 4)
            reader.close()
            self.assertEqual(descriptors(), before + 3)
            ours.close()
            theirs.close()

    def test_what_is_taken(self) -> None:
        file = _memfd.Memfd([b"ab", memoryview(b"cd" * LEAST)])
        found = _memfd.take(file.fd, file.size)
        self.assertEqual((found.readonly, bytes(found[:4]), len(found)), (True, b"abcd", file.size))
        self.assertEqual(fcntl.fcntl(file.fd, 1034) & 15, 15)
        self.assertTrue(os.stat(file.fd).st_size == file.size)
        self.assertIn("memfd:psi", Path("/proc/self/maps").read_text())


if __name__ == "__main__":
    unittest.main()
