"""Connections to ports that a guest listens at."""

from __future__ import annotations

import socket
import threading
import unittest
from typing import List

import pyisolate as psi
from pyisolate.policy import Policy

from .guests import GuestTest

SERVER = """
import socket, threading
def serve(port, answer):
    listener = socket.create_server(("127.0.0.1", port), backlog=256)
    def loop():
        while True:
            client = listener.accept()[0]
            client.sendall(answer(client.recv(100)))
            client.close()
    threading.Thread(target=loop, daemon=True).start()
"""


class Connect(GuestTest):
    def test_a_server_in_a_guest(self) -> None:
        with psi.spawn("server", Policy().expose_port(8000).expose_port(8001)) as sb:
            with self.assertRaisesRegex(psi.SandboxError, "nothing listens there"):
                sb.connect(8000)
            sb.exec(SERVER + "serve(8000, bytes.upper); post(1)")
            self.assertEqual(sb.recv(timeout=20), 1)
            with sb.connect(8000) as client:
                self.assertEqual(client.family, socket.AF_INET)
                client.sendall(b"hello")
                self.assertEqual(client.recv(100), b"HELLO")
                self.assertEqual(client.recv(100), b"")
            for port in (8001, 8002, 0, 65536, True, "8000"):
                with self.assertRaises(psi.SandboxError):
                    sb.connect(port)  # type: ignore[arg-type]
            self.assertEqual(sb.call("len", "the guest goes on"), 17)
        with self.assertRaises(psi.SandboxError):
            sb.connect(8000)

    def test_many_at_once(self) -> None:
        """The supervisor keeps none of them: 200 connections from 8 threads."""
        with psi.spawn("server", {"expose": [8000]}) as sb:
            sb.exec(SERVER + "serve(8000, bytes.upper); post(1)")
            sb.recv(timeout=20)
            answers: List[bytes] = []

            def ask() -> None:
                for _ in range(25):
                    with sb.connect(8000, timeout=20) as client:
                        client.sendall(b"x")
                        answers.append(client.recv(10))

            threads = [threading.Thread(target=ask) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(answers, [b"X"] * 200)

    def test_a_guest_that_never_accepts(self) -> None:
        with psi.spawn("server", {"expose": [8000]}) as sb:
            sb.exec("import socket; s = socket.socket(); s.bind(('127.0.0.1', 8000)); s.listen(0); post(1)")
            sb.recv(timeout=20)
            held = []
            with self.assertRaises(psi.TimeoutError):
                for _ in range(8):
                    held.append(sb.connect(8000, timeout=0.3))
            for each in held:
                each.close()

    def test_a_guest_may_listen_only_there(self) -> None:
        with psi.spawn("mute") as sb:
            sb.exec("import socket; socket.socket().bind(('127.0.0.1', 8000))")
            with self.assertRaises(PermissionError):
                sb.recv(timeout=20)
            with self.assertRaisesRegex(psi.PolicyError, r"expose: \[8000\] would"):
                sb.connect(8000)


if __name__ == "__main__":
    unittest.main()
