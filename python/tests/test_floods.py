"""Guests that send without end, or read nothing: the client does not grow."""

from __future__ import annotations

import gc
import time
from typing import List

import pyisolate as psi

from .guests import FIND_CHANNEL, rss
from .test_hostile import MIB, HostileTest


class Floods(HostileTest):
    def grown(self, before: int) -> int:
        gc.collect()
        return (rss() - before) // MIB

    def test_posts_that_nobody_receives(self) -> None:
        sandbox = self.spawn()
        before = rss()
        sandbox.exec("while True: post(b'x' * 100000)")
        for _ in range(30):
            time.sleep(0.02)
            sandbox.stdout  # reads what has come
        self.assertLess(self.grown(before), 40)
        self.assertEqual(sandbox.recv(timeout=5), b"x" * 100000)
        sandbox.close()

    def test_a_call_that_waits_while_posts_flood(self) -> None:
        sandbox = self.spawn()
        before = rss()
        sandbox.exec("def flood(n):\n  for i in range(n): post(bytes(1000))\n  return n")
        with self.assertRaises(psi.TimeoutError):
            sandbox.exec("flood(10**9)", timeout=2)
        self.assertLess(self.grown(before), 40)
        sandbox.close()

    def test_tiny_frames(self) -> None:
        sandbox = self.spawn()
        before = rss()
        with self.assertRaises(psi.TimeoutError):
            sandbox.exec(FIND_CHANNEL + "data = frame(20, b'S') * 5000\nwhile True: write(data)", timeout=2)
        self.assertLess(self.grown(before), 40)
        self.assertEqual(sandbox.recv(timeout=1), "")

    def test_an_unfinished_frame_byte_by_byte(self) -> None:
        sandbox = self.spawn()
        before = rss()
        sandbox.exec(FIND_CHANNEL + "write(frame(20, size=60 << 20))\nfor i in range(300000): write(b'x')\npost(1)")
        with self.assertRaises(psi.TimeoutError):
            sandbox.recv(timeout=3)
        self.assertLess(self.grown(before), 10)

    def test_output(self) -> None:
        sandbox = self.spawn({"output": 1 << 40})
        before = rss()
        seen: List[int] = []
        sandbox.exec("for i in range(300): print('x' * 100000)", on_stdout=lambda text: seen.append(len(text)), timeout=60)
        self.assertEqual(sum(seen), 300 * 100001)
        with self.assertRaises(psi.TimeoutError):
            sandbox.exec("while True: print('y' * 10000)", timeout=1)
        self.assertLess(self.grown(before), 40)
        self.assertLessEqual(len(sandbox.stdout), 256 << 10)

    def test_output_of_raw_frames(self) -> None:
        sandbox = self.spawn()
        before = rss()
        with self.assertRaises(psi.TimeoutError):
            sandbox.exec(
                FIND_CHANNEL + "data = frame(21, b'x', id=1) * 5000\nwhile True: write(data)",
                timeout=2, on_stdout=lambda text: time.sleep(0.001),
            )  # fmt: skip
        self.assertLess(self.grown(before), 20)

    def test_output_beyond_the_policy_is_cut(self) -> None:
        sandbox = self.spawn({"output": "64KiB"})
        seen: List[str] = []
        sandbox.exec("for i in range(100): print('x' * 10000)\npost('done')", on_stdout=seen.append, timeout=20)
        self.assertEqual(sandbox.recv(timeout=5), "done")
        self.assertEqual(len("".join(seen)), 64 << 10)

    def test_a_guest_that_does_not_read(self) -> None:
        sandbox = self.spawn({"mem": "1GiB"})
        sandbox.exec("import time; post(1)\nwhile True: time.sleep(1)")
        sandbox.recv(timeout=5)
        before = rss()
        started = time.monotonic()
        self.fill(sandbox)
        self.assertLess(time.monotonic() - started, 60)
        self.assertLess(self.grown(before), 100)
        sandbox.close()
        self.assertLess(self.grown(before), 20)

    def fill(self, sandbox: psi.Sandbox) -> None:
        try:
            for _ in range(1000):
                sandbox.post(b"x" * (10 << 20))
        except psi.SandboxError as error:
            self.assertIn("does not read", str(error))
        else:
            self.fail("1000 posts of 10 MiB were kept")
