"""The control connection without a supervisor: who reads a reply, and what becomes of the rest."""

from __future__ import annotations

import array
import json
import os
import select
import socket
import threading
import time
import unittest
import unittest.mock
from typing import Any, Callable, Dict, List, Optional

from pyisolate._control import Connection, ConnectionLost, Message, Pending
from pyisolate._io import IOThread
from pyisolate.errors import SandboxError

from .guests import wait_for


def frame(message: Dict[str, Any]) -> bytes:
    data = json.dumps(message).encode()
    return len(data).to_bytes(4, "big") + data


class Leading(unittest.TestCase):
    """One thread reads its own reply; everything else is the I/O thread's."""

    def setUp(self) -> None:
        ours, self.theirs = socket.socketpair()
        self.addCleanup(self.theirs.close)
        self.pushed: List[Message] = []
        io = IOThread()
        self.connection = Connection(ours, io, lambda _, message: self.pushed.append(message), lambda _, why: None)
        io.add(self.connection)
        self.threads: List[str] = []

    def keep(self, ok: Message, fd: Optional[int]) -> Optional[int]:
        self.threads.append(threading.current_thread().name)
        return fd

    def lead(self, play: Callable[[], None]) -> Any:
        """Lead for request 1, while the other end does what ``play`` does."""
        pending = Pending(self.keep)
        self.connection.send(pending, "spawn", {})
        self.theirs.recv(4096)
        other = threading.Timer(0.05, play)
        other.start()
        self.addCleanup(other.join)
        return self.connection.lead(pending, "spawn", 10)

    def answer(self, data: bytes, *fds: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.theirs.sendmsg([data], rights)

    def assert_goes_on(self, id: int) -> None:
        """The I/O thread reads again."""
        pending = self.connection.tell("list", {})
        self.theirs.recv(4096)
        self.answer(frame({"event": "after"}) + frame({"id": id, "ok": 7}))
        self.assertEqual(self.connection.wait(pending, "list", 5), 7)
        self.assertEqual(self.pushed[-1], {"event": "after"})

    def test_its_reply_alone(self) -> None:
        with open(os.devnull) as file:
            fd = self.lead(lambda: self.answer(frame({"id": 1, "ok": {}}), file.fileno()))
        os.close(fd)
        self.assertEqual(self.threads, [threading.current_thread().name])
        self.assert_goes_on(2)

    def test_in_pieces(self) -> None:
        def play() -> None:
            for byte in frame({"id": 1, "ok": {}}):
                self.answer(bytes([byte]))
                time.sleep(0.001)

        self.assertIsNone(self.lead(play))
        self.assertEqual(self.threads, [threading.current_thread().name])
        self.assert_goes_on(2)

    def test_something_else_before_it_and_after_it(self) -> None:
        before, after = frame({"event": "before"}), frame({"event": "later"})
        self.assertIsNone(self.lead(lambda: self.answer(before + frame({"id": 1, "ok": {}}) + after)))
        self.assertEqual(self.threads, ["pyisolate-io"])
        self.assertTrue(wait_for(lambda: self.pushed == [{"event": "before"}, {"event": "later"}]))
        self.assert_goes_on(2)

    def test_after_it(self) -> None:
        data = frame({"id": 1, "ok": {}}) + frame({"event": "later"}) + frame({"event": "last"})[:9]
        self.assertIsNone(self.lead(lambda: self.answer(data)))
        self.assertEqual(self.threads, [threading.current_thread().name])
        self.assertTrue(wait_for(lambda: self.pushed == [{"event": "later"}]))
        self.answer(frame({"event": "last"})[9:])
        self.assert_goes_on(2)

    def test_who_has_exited_is_taken_by_the_leader(self) -> None:
        exited = frame({"exited": {"guest": "psi-1"}})
        self.assertIsNone(self.lead(lambda: self.answer(exited + frame({"id": 1, "ok": {}}) + exited)))
        self.assertEqual(self.threads, [threading.current_thread().name])
        self.assertEqual(self.pushed, [{"exited": {"guest": "psi-1"}}] * 2)
        self.assert_goes_on(2)

    def test_a_question_is_led_by_who_asks(self) -> None:
        reader: List[str] = []
        finish = Pending.finish
        with unittest.mock.patch.object(Pending, "finish", autospec=True) as finished:
            finished.side_effect = lambda *given: (reader.append(threading.current_thread().name), finish(*given))
            other = threading.Timer(0.05, lambda: self.answer(frame({"id": 1, "ok": 7})))
            other.start()
            self.addCleanup(other.join)
            self.assertEqual(self.connection.ask("stats", {}, 10), 7)
        self.assertEqual(reader, [threading.current_thread().name])
        self.theirs.recv(4096)
        self.assert_goes_on(2)

    def test_a_number_that_is_not_json_is_refused_here(self) -> None:
        with self.assertRaisesRegex(SandboxError, "close takes finite numbers"):
            self.connection.ask("close", {"timeout": float("inf")}, 5)
        self.assert_goes_on(2)

    def test_not_while_others_wait(self) -> None:
        others = self.connection.tell("list", {})
        pending = Pending(self.keep)
        self.connection.send(pending, "spawn", {})
        self.answer(frame({"id": 2, "ok": {}}))
        self.connection.lead(pending, "spawn", 5)
        self.assertEqual(self.threads, ["pyisolate-io"])
        self.answer(frame({"id": 1, "ok": {}}))
        self.connection.wait(others, "list", 5)

    def test_what_nobody_asked_for_is_closed(self) -> None:
        read, write = os.pipe()
        self.addCleanup(os.close, read)

        def play() -> None:
            self.answer(frame({"id": 1, "ok": {}}), os.open(os.devnull, os.O_RDONLY), write)
            os.close(write)

        os.close(self.lead(play))
        self.assertTrue(wait_for(lambda: bool(select.select([read], [], [], 0)[0])), "the pipe is still open")

    def test_the_end(self) -> None:
        with self.assertRaises(ConnectionLost):
            self.lead(self.theirs.close)

    def test_what_is_no_message(self) -> None:
        with self.assertRaisesRegex(ConnectionLost, "at most"):
            self.lead(lambda: self.answer(b"\xff" * 8))
