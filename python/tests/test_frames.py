"""Frames and the outbox: cut and sent right, whatever the pieces and whoever interrupts."""

from __future__ import annotations

import gc
import random
import signal
import socket
import threading
import unittest
import unittest.mock
from collections import deque
from typing import Deque, List, Optional

from pyisolate import _frames as wire
from pyisolate._filing import Filing
from pyisolate._frames import Frame, FrameReader, ProtocolError, move, pack
from pyisolate._outbox import LIMIT, Outbox, OutboxFull


class Interrupt(Exception):
    """What the tests' signal handler raises, as ^C raises KeyboardInterrupt."""


_armed = False  # an alarm may be delivered after its timer was stopped


def _arm(seconds: float) -> None:
    global _armed
    _armed = seconds > 0
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _raise(number: int, frame: object) -> None:
    if _armed:
        raise Interrupt


class Pairs(unittest.TestCase):
    def setUp(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.addCleanup(self.ours.close)
        self.addCleanup(self.theirs.close)


class Reading(Pairs):
    def test_any_pieces(self) -> None:
        rng = random.Random(1)
        sizes = [rng.choice([0, 1, 5, 1000, 40000, 300000, 3000000]) for _ in range(60)]
        data = b"".join(pack(wire.GUEST_POST, i, bytes([i]) * size) for i, size in enumerate(sizes))

        def send() -> None:
            start = 0
            while start < len(data):
                size = rng.choice([1, 3, 11, 12, 13, 70000, 200000])
                self.theirs.sendall(data[start : start + size])
                start += size
            self.theirs.close()

        threading.Thread(target=send).start()
        reader = FrameReader(64 << 20)
        got: List[Frame] = []
        while reader.read(self.ours):
            while reader.frames:
                got.append(reader.frames.popleft())
        self.assertEqual([len(each.payload) for each in got], sizes)
        self.assertTrue(all(set(each.payload) <= {i} for i, each in enumerate(got)))
        self.assertEqual(got[-1].posted, sum(sizes))

    def test_another_protocol(self) -> None:
        """A root that another version of psi has made: the error says what to do."""
        self.theirs.sendall(pack(wire.READY, 0, b'{"python":"3.11.2","pid":1,"protocol":1}'))
        reader = FrameReader()
        reader.begin(1 << 20)
        reader.read(self.ours)
        with self.assertRaisesRegex(ProtocolError, "version 2 of the protocol: rebuild its rootfs"):
            Filing().hand_out(reader.frames)

    def test_faults(self) -> None:
        for header, says in (
            ((0, 1, 0, 0, 0), "type 1"),
            ((0, 24, 0, 0, 0), "type 24"),
            ((0, wire.DONE, 0, 1, 0), "reserved"),
            ((0, wire.DONE, 1, 0, 0), "reserved"),
            ((0, wire.ERROR, 2, 0, 0), "reserved"),
            ((1, wire.DONE, 0, 0, 0), "at most 0"),
            (((64 << 10) + 1, wire.STDOUT, 0, 0, 0), "at most 65536"),
            (((64 << 10) + 1001, wire.RESULT, 0, 0, 0), "at most 66536"),
        ):
            reader = FrameReader(1000)
            self.theirs.sendall(pack(wire.STDERR, 0, b"good") + wire.HEADER.pack(*header))
            self.assertTrue(reader.read(self.ours))
            self.assertEqual(reader.frames.popleft().payload, b"good")
            with self.assertRaisesRegex(ProtocolError, says):
                reader.read(self.ours)

    def test_interrupts_lose_and_repeat_nothing(self) -> None:
        count = 20000
        rng = random.Random(2)

        def send() -> None:
            for i in range(count):
                self.theirs.sendall(pack(wire.GUEST_POST, i, b"%d" % i * rng.choice([1, 1, 20, 500])))
            self.theirs.close()

        gc.disable()  # an interrupt inside a destructor would be reported and swallowed
        self.addCleanup(gc.enable)
        before = signal.signal(signal.SIGALRM, _raise)
        self.addCleanup(signal.signal, signal.SIGALRM, before)
        threading.Thread(target=send, daemon=True).start()
        reader = FrameReader(1 << 20)
        inbox: Deque[Frame] = deque()
        interrupts, more = 0, True

        def read_some() -> bool:  # a function: see Channel._wait about loops and `try`
            for _ in range(100):
                if not reader.read(self.ours):
                    return False
                while reader.frames:
                    move(reader.frames, inbox)
            return True  # and arm again: an interrupt in a destructor is swallowed

        while more:
            try:
                _arm(rng.uniform(1e-5, 3e-4))
                more = read_some()
                _arm(0)
            except Interrupt:
                interrupts += 1
        _arm(0)
        self.assertEqual([each.id for each in inbox], list(range(count)))
        self.assertGreater(interrupts, 20)

    def test_interrupted_after_the_read(self) -> None:
        """What the kernel gave stays, be it only a part of a frame."""
        frame = pack(wire.GUEST_POST, 1, bytes(range(200)))
        reader = FrameReader(1 << 20)
        with unittest.mock.patch.object(FrameReader, "_cut", side_effect=Interrupt):
            self.theirs.sendall(frame[:100])
            with self.assertRaises(Interrupt):
                reader.read(self.ours)
        self.theirs.sendall(frame[100:])
        self.assertTrue(reader.read(self.ours))
        self.assertEqual([each.payload for each in reader.frames], [frame[12:]])

    def test_progress_between_interrupts(self) -> None:
        """A full buffer of small frames is not cut in one go, which interrupts could prevent for ever."""
        count, seen = 2000, 0
        self.theirs.sendall(b"".join(pack(wire.GUEST_POST, i) for i in range(count)))
        reader = FrameReader(1 << 20)
        reads = 0
        while seen < count:
            self.assertTrue(reader.read(self.ours))
            reads += 1
            self.assertLessEqual(len(reader.frames), 200)
            self.assertEqual([each.id for each in reader.frames], list(range(seen, seen + len(reader.frames))))
            seen += len(reader.frames)
            reader.frames.clear()
        self.assertGreaterEqual(reads, count // 200)


class Sending(Pairs):
    def test_interrupts_lose_and_repeat_nothing(self) -> None:
        got: List[bytes] = []

        def take() -> None:
            while True:
                data = self.theirs.recv(50000)
                if not data:
                    return
                got.append(data)

        gc.disable()  # an interrupt inside a destructor would be reported and swallowed
        self.addCleanup(gc.enable)
        before = signal.signal(signal.SIGALRM, _raise)
        self.addCleanup(signal.signal, signal.SIGALRM, before)
        thread = threading.Thread(target=take)
        thread.start()
        outbox = Outbox()
        outbox.open(self.ours)
        rng = random.Random(3)
        sent: List[bytes] = []
        interrupts = 0
        for i in range(3000):
            frame = b"%d." % i * rng.choice([1, 10, 5000])
            queued: Optional[bool] = None
            before_end = sum(map(len, sent))
            try:
                _arm(rng.uniform(1e-6, 1e-4))
                outbox.put(frame)
                queued = True
                _arm(0)
            except Interrupt:
                interrupts += 1
            reached = outbox._queue[-1][0] if outbox._queue else sum(outbox._sent)
            if queued or reached > before_end:
                sent.append(frame)
            self.assertEqual(reached, sum(map(len, sent)))
        while not outbox.flush():
            pass
        self.ours.shutdown(socket.SHUT_WR)
        thread.join(10)
        self.assertEqual(b"".join(got), b"".join(sent))
        self.assertGreater(interrupts, 20)

    def test_it_is_bounded_and_never_blocks(self) -> None:
        outbox = Outbox()
        outbox.open(self.ours)
        self.assertFalse(outbox.put(b"x" * (LIMIT + 5)))  # alone, any size
        with self.assertRaisesRegex(OutboxFull, str(LIMIT)):
            outbox.put(b"x" * (1 << 20))

    def test_a_closed_channel(self) -> None:
        outbox = Outbox()
        outbox.open(self.ours)
        self.theirs.close()
        with self.assertRaises(OSError):
            outbox.put(b"x")
        outbox.close()
        with self.assertRaises(OSError):
            outbox.put(b"x")
        self.assertEqual(outbox.fileno(), -1)


if __name__ == "__main__":
    unittest.main()
