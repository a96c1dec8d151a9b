"""psi.asyncio: many guests, one loop, no thread for any of them."""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import threading
import time
import unittest
from typing import Any, Awaitable, Callable, List, Optional, Sequence

import pyisolate as psi

from .guests import FIND_CHANNEL, GuestTest

_numbers = itertools.count(1)


class LoopTest(GuestTest):
    """Each test runs in a loop of its own, with guests from ``self.make``."""

    def run_in_loop(self, main: Callable[[], Awaitable[None]]) -> None:
        async def all_of_it() -> None:
            self.made: List[psi.asyncio.Sandbox] = []
            try:
                await asyncio.wait_for(main(), 120)
            finally:
                await asyncio.gather(*(each.close() for each in self.made))

        asyncio.run(all_of_it())

    async def make(self, policy: Any = None, allowed_imports: Optional[Sequence[str]] = None) -> psi.asyncio.Sandbox:
        sandbox = await psi.asyncio.spawn(f"loop-{os.getpid()}-{next(_numbers)}", policy, allowed_imports)
        self.ids.add(sandbox.id)
        self.made.append(sandbox)
        return sandbox


class Calls(LoopTest):
    def test_the_same_as_without_a_loop(self) -> None:
        async def main() -> None:
            async with await psi.asyncio.spawn("guest42", policy="defaults") as sb:
                self.ids.add(sb.id)
                await sb.exec("from math import sqrt; post(sqrt(2))")
                self.assertEqual(await sb.recv(timeout=5), 2**0.5)
                self.assertEqual(await sb.call("math.hypot", 3, 4), 5.0)
                await sb.exec("while True: post(recv() * 2)")
                await sb.post(21)
                self.assertEqual(await sb.recv(), 42)
                self.assertEqual((str(sb), sb.alive, sb.limits["mem"] > 0), ("guest42", True, True))
                self.assertGreater((await sb.stats()).mem_bytes, 1 << 20)
                await sb.interrupt()
                with self.assertRaises(psi.GuestError) as caught:
                    await sb.recv(timeout=5)
                self.assertEqual(caught.exception.type_name, "KeyboardInterrupt")
                self.assertIn("guest42", psi.list_active())
            self.assertFalse(sb.alive)
            with self.assertRaisesRegex(psi.SandboxError, "is closed"):
                await sb.call("abs", 1)
            await sb.close()

        asyncio.run(main())

    def test_exceptions_and_output(self) -> None:
        async def main() -> None:
            sb = await self.make()
            await sb.exec("1 / 0")
            with self.assertRaises(ZeroDivisionError):
                await sb.recv(timeout=5)
            with self.assertRaises(ValueError):
                await sb.call("int", "x")
            seen: List[str] = []
            await sb.exec("for i in range(1000): print('x' * 100)\npost(1)", on_stdout=seen.append)
            self.assertEqual(len("".join(seen)), 101_000)
            self.assertEqual(await sb.recv(), 1)
            self.assertTrue(sb.stdout.endswith("x\n"))
            with self.assertRaises(TypeError):
                await sb.call(sum, [1])  # type: ignore[arg-type]
            with self.assertRaises(psi.PolicyError):
                await psi.asyncio.spawn("bad", {"mem": "7 parsecs"})
            with self.assertRaises(psi.SandboxError):
                await psi.asyncio.spawn(sb.name)

        with self.assertRaises(psi.SandboxError):
            self.run_in_loop(main)

    def test_timeouts_and_cancellation_interrupt_the_guest(self) -> None:
        async def main() -> None:
            sb = await self.make()
            with self.assertRaises(psi.TimeoutError):
                await sb.recv(timeout=0.05)
            started = time.monotonic()
            with self.assertRaises(psi.TimeoutError):
                await sb.exec("while True: pass", timeout=0.3)
            with self.assertRaises(asyncio.TimeoutError):
                await asyncio.wait_for(sb.call("time.sleep", 60), 0.3)
            self.assertEqual(await sb.call("abs", -7), 7)
            self.assertLess(time.monotonic() - started, 30)
            with self.assertRaises(asyncio.TimeoutError):
                await asyncio.wait_for(sb.recv(), 0.1)
            await sb.exec("post('still in order')")
            self.assertEqual(await sb.recv(), "still in order")

        self.run_in_loop(main)

    def test_several_tasks_of_one_guest(self) -> None:
        async def main() -> None:
            sb = await self.make()
            await sb.exec("def f(x):\n  for i in range(3): post(i)\n  return x * 2")
            got = await asyncio.gather(*(sb.call("f", i) for i in range(20)), *(sb.recv() for _ in range(60)))
            self.assertEqual(got[:20], [i * 2 for i in range(20)])
            self.assertEqual(sorted(got[20:]), sorted([0, 1, 2] * 20))

        self.run_in_loop(main)

    def test_a_full_inbox_makes_the_guest_wait_and_the_loop_sleep(self) -> None:
        async def main() -> None:
            sb = await self.make()
            await sb.exec("def flood():\n  for i in range(5000): post(i)\n  return 'through'")
            call = asyncio.ensure_future(sb.call("flood"))
            await asyncio.sleep(0.5)
            before = time.process_time()
            await asyncio.sleep(1)
            self.assertLess(time.process_time() - before, 0.3)
            self.assertFalse(call.done())
            self.assertEqual([await sb.recv() for _ in range(5000)], list(range(5000)))
            self.assertEqual(await call, "through")

        self.run_in_loop(main)

    def test_connect(self) -> None:
        async def main() -> None:
            sb = await self.make({"expose": [8000]})
            await sb.exec("import socket\ns = socket.create_server(('127.0.0.1', 8000))\npost(1)\nc = s.accept()[0]; c.sendall(c.recv(100)[::-1])")
            await sb.recv(timeout=10)
            reader, writer = await asyncio.open_connection(sock=await sb.connect(8000))
            writer.write(b"abc")
            self.assertEqual(await reader.readexactly(3), b"cba")
            writer.close()
            with self.assertRaises(psi.SandboxError):
                await sb.connect(8001)

        self.run_in_loop(main)

    def test_large_values(self) -> None:
        async def main() -> None:
            sb = await self.make()
            await sb.exec("while True: post(recv())")
            value = os.urandom(2 << 20)
            for _ in range(5):
                await sb.post(value)
                self.assertEqual(await sb.recv(timeout=10), value)

        self.run_in_loop(main)


class Ends(LoopTest):
    def test_each_death_has_its_cause(self) -> None:
        async def main() -> None:
            for policy, code, kind, cause in (
                (None, "import os; os._exit(5)", psi.SandboxError, "exit"),
                ({"mem": "64MiB"}, "x = bytearray(1 << 30)", psi.MemoryExceeded, "oom"),
                ({"cpu_ms": 300}, "while True: pass", psi.CPUExceeded, "cpu"),
                (None, FIND_CHANNEL + "write(b'no frame' * 9)", psi.SandboxError, "broken"),
                (None, FIND_CHANNEL + "write(frame(20, b'J['))", psi.SandboxError, "broken"),
                (None, FIND_CHANNEL + "write(frame(19, b'{', id=1, flags=1))", psi.SandboxError, "broken"),
            ):
                sb = await self.make(policy)
                await sb.exec(code)
                with self.assertRaises(kind) as caught:
                    await sb.recv(timeout=30)
                self.assertEqual(caught.exception.cause, cause, caught.exception)

        self.run_in_loop(main)

    def test_close_ends_those_who_wait(self) -> None:
        async def main() -> None:
            sb = await self.make()
            waiting = [asyncio.ensure_future(sb.recv()), asyncio.ensure_future(sb.call("time.sleep", 60))]
            await asyncio.sleep(0.2)
            await sb.close()
            for each in waiting:
                with self.assertRaises(psi.SandboxError):
                    await asyncio.wait_for(each, 5)

        self.run_in_loop(main)

    def test_the_loop_goes_on_while_a_guest_misbehaves(self) -> None:
        """A guest that ends its channel and lives on: the loop waits for its end, and never stands still."""

        async def main() -> None:
            sb = await self.make()
            await sb.exec(FIND_CHANNEL + "import socket, time\nsocket.socket(fileno=channel).shutdown(2)\nwhile True: time.sleep(1)")
            longest = 0.0

            async def tick() -> None:
                nonlocal longest
                while True:
                    before = time.monotonic()
                    await asyncio.sleep(0.01)
                    longest = max(longest, time.monotonic() - before)

            ticking = asyncio.ensure_future(tick())
            with self.assertRaises(psi.SandboxError) as caught:
                await sb.recv(timeout=30)
            ticking.cancel()
            self.assertEqual(caught.exception.cause, "broken")
            self.assertLess(longest, 0.7)

        self.run_in_loop(main)


@unittest.skipIf(os.environ.get("PSI_TEST_VM"), "a hundred starts take minutes on the emulated machine")
class Many(LoopTest):
    COUNT = 120

    def test_a_hundred_guests_and_no_thread(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))

        async def main() -> None:
            await self.make()  # starts the supervisor
            before = threading.active_count()
            gate = asyncio.Semaphore(8)

            async def one(number: int) -> int:
                async with gate:
                    sb = await self.make()
                await sb.exec("while True: post(recv() + 1)")
                total = 0
                for _ in range(20):
                    await sb.post(number)
                    total += await sb.recv(timeout=60)
                return total

            got = await asyncio.gather(*(one(number) for number in range(self.COUNT)))
            self.assertEqual(got, [20 * (number + 1) for number in range(self.COUNT)])
            self.assertLessEqual(threading.active_count(), before)

        self.run_in_loop(main)


if __name__ == "__main__":
    unittest.main()
