"""Who waits, and for how long: timeouts, threads, ^C, event loops."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
import threading
import time
import unittest
import weakref
from types import FrameType
from typing import Any, Callable, Dict, List, Set, Tuple

import pyisolate as psi
from pyisolate import _frames as wire
from pyisolate import _lock
from pyisolate._waiting import Bell

from .guests import GuestTest, wait_for


class Timeouts(GuestTest):
    def test_of_recv(self) -> None:
        sandbox = self.spawn()
        for timeout in (0, 0.01, 0.3):
            started = time.monotonic()
            with self.assertRaises(psi.TimeoutError) as caught:
                sandbox.recv(timeout=timeout)
            self.assertTrue(timeout <= time.monotonic() - started < timeout + 0.5)
            self.assertIs(caught.exception.sandbox, sandbox)
        sandbox.exec("post(1)", timeout=5)
        self.assertEqual(sandbox.recv(timeout=0), 1)
        sandbox.exec("post(2)")
        self.assertEqual(sandbox.recv(timeout=1e18), 2)

    def test_of_a_guest_that_drips(self) -> None:
        sandbox = self.spawn()
        sandbox.exec("import time\nwhile True: print('x'); time.sleep(0.01)")
        started = time.monotonic()
        with self.assertRaises(psi.TimeoutError):
            sandbox.recv(timeout=0.5)
        with self.assertRaises(psi.TimeoutError):
            sandbox.exec("pass", timeout=0.5, on_stdout=lambda text: None)
        self.assertLess(time.monotonic() - started, 2)


class Threads(GuestTest):
    def run_all(self, *jobs: Callable[[], None]) -> None:
        faults: List[BaseException] = []

        def guarded(job: Callable[[], None]) -> None:
            try:
                job()
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=guarded, args=(job,), daemon=True) for job in jobs]
        for each in threads:
            each.start()
        for each in threads:
            each.join(60)
            self.assertFalse(each.is_alive(), "a thread hangs")
        if faults:
            raise faults[0]

    def test_calls_and_receives_at_once(self) -> None:
        sandbox = self.spawn()
        sandbox.exec("def work(who, n):\n  post((who, n)); return who, n", timeout=5)
        received: List[Any] = []

        def call(who: int) -> Callable[[], None]:
            def job() -> None:
                for n in range(200):
                    self.assertEqual(sandbox.call("work", who, n), (who, n))

            return job

        def receive() -> None:
            for _ in range(300):
                received.append(sandbox.recv(timeout=30))

        self.run_all(call(0), call(1), call(2), receive, receive)
        self.assertEqual(set(received), {(who, n) for who in range(3) for n in range(200)})
        for who in range(3):
            self.assertEqual(len([n for each, n in received if each == who]), 200)

    def test_a_full_inbox_is_emptied_by_another_thread(self) -> None:
        sandbox = self.spawn()
        sandbox.exec("def flood(n):\n  for i in range(n): post(i)\n  return n", timeout=5)
        got: List[int] = []
        self.run_all(
            lambda: self.assertEqual(sandbox.call("flood", 20000), 20000),
            lambda: got.extend(sandbox.recv(timeout=30) for _ in range(20000)),
        )
        self.assertEqual(got, list(range(20000)))

    def test_many_sandboxes(self) -> None:
        def job() -> None:
            for _ in range(2):
                sandbox = self.spawn(name=f"thread-{threading.get_ident()}")
                sandbox.exec("post(recv() + 1)")
                sandbox.post(1)
                self.assertEqual(sandbox.recv(timeout=30), 2)
                sandbox.close()

        self.run_all(*[job] * 6)

    def test_output_callbacks_of_one_thread_while_another_reads(self) -> None:
        sandbox = self.spawn()
        seen: List[str] = []

        def show(text: str) -> None:
            seen.append(text)
            time.sleep(0.0005)

        self.run_all(
            lambda: sandbox.exec("for i in range(1000): print(i, flush=True)\npost('end')", on_stdout=show),
            lambda: self.assertEqual(sandbox.recv(timeout=30), "end"),
        )
        self.assertEqual("".join(seen).split(), [str(i) for i in range(1000)])

    def test_output_that_another_thread_reads_before_anybody_takes_it(self) -> None:
        sandbox = self.spawn()
        request = sandbox._channel.request(wire.EXEC, sandbox.source("for i in range(1000): print(i, flush=True)\npost('end')"), True)
        self.assertEqual(sandbox.recv(timeout=30), "end")
        seen: List[wire.Frame] = []
        sandbox._channel.answer(request, None, seen.append)
        self.assertEqual(b"".join(each.data for each in seen).split(), [b"%d" % i for i in range(1000)])

    def test_no_thread_per_guest(self) -> None:
        before = threading.active_count()
        boxes = [self.spawn() for _ in range(5)]
        for each in boxes:
            self.assert_works(each)
        self.assertLessEqual(threading.active_count(), before + 1)


class Dropping(GuestTest):
    def test_a_handle_does_not_wait_for_the_garbage_collector(self) -> None:
        gc.disable()
        self.addCleanup(gc.enable)
        with psi.spawn("dropped") as sandbox:
            self.assert_works(sandbox)
        gone = weakref.ref(sandbox)
        del sandbox
        self.assertTrue(wait_for(lambda: gone() is None), "a cycle of references holds it")


class Bells(unittest.TestCase):
    def test_everybody_hears_it(self) -> None:
        bell = Bell()
        self.assertFalse(bell.wait(0) or bell.wait(0.01) or bell.rung)
        heard: List[bool] = []
        threads = [threading.Thread(target=lambda: heard.append(bell.wait(1e12))) for _ in range(8)]
        for each in threads:
            each.start()
        time.sleep(0.05)
        ringers = [threading.Thread(target=bell.ring) for _ in range(4)]
        for each in ringers:
            each.start()
        for each in threads + ringers:
            each.join(10)
        self.assertEqual(heard, [True] * 8)
        self.assertTrue(bell.rung and bell.wait(0))


class ControlC(GuestTest):
    def test_in_recv(self) -> None:
        sandbox = self.spawn()
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        for timeout in (None, 30):
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            started = time.monotonic()
            with self.assertRaises(KeyboardInterrupt):
                sandbox.recv(timeout)
            self.assertLess(time.monotonic() - started, 2)
            sandbox.exec("post('usable')")
            self.assertEqual(sandbox.recv(timeout=5), "usable")

    def test_in_call_and_exec(self) -> None:
        sandbox = self.spawn()
        sandbox.exec("def spin():\n  while True: pass", timeout=5)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        waits: List[Callable[[], Any]] = [lambda: sandbox.call("spin"), lambda: sandbox.exec("spin()", timeout=30)]
        for wait in waits:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            with self.assertRaises(KeyboardInterrupt):
                wait()
            self.assert_works(sandbox)  # the guest was interrupted as well

    def test_in_spawn_leaves_no_guest(self) -> None:
        self.spawn()
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        for delay in (0.002, 0.01, 0.03, 0.05, 0.08):
            timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
            with self.assertRaises(KeyboardInterrupt):
                timer.start()
                psi.spawn("interrupted").close()
                timer.join()
                time.sleep(1)
            done = psi.list_active().get("interrupted")
            if done is not None:  # ^C came after spawn: the guest is there, and listed
                done.close()
        listed = psi._supervision._connections[None]
        deadline = time.monotonic() + 5
        names: Set[str] = {"interrupted"}
        while "interrupted" in names and time.monotonic() < deadline:
            names = {each["name"] for each in listed.ask("list", {}, 5)["guests"]}
        self.assertNotIn("interrupted", names)

    def test_at_any_step_of_a_spawn(self) -> None:
        """Nothing is left of it, and the connection goes on."""
        base = self.spawn()
        self.assert_works(base)
        listed = psi._supervision._connections[None]
        files = len(os.listdir("/proc/self/fd"))
        left = 0

        def profile(frame: FrameType, event: str, arg: object) -> None:
            nonlocal left
            if frame.f_code.co_filename == _lock.__file__:
                return  # Python 3.9: its locks heal when the same thread comes again, and others wait
            left -= event in ("call", "c_return")  # where CPython looks for signals
            if left == 0:
                left = -1
                raise KeyboardInterrupt

        def interrupted(at: int) -> bool:
            nonlocal left
            # The thread that spawns reads the reply itself if no other is to come.
            self.assertTrue(wait_for(lambda: not any(each.asked for each in listed._pending.values())))
            left = at
            try:
                sys.setprofile(profile)
                psi.spawn(f"interrupted-{at}")
            except KeyboardInterrupt:
                pass
            finally:
                sys.setprofile(None)
            done = psi.list_active().get(f"interrupted-{at}")
            if done is not None:
                done.close()
            return left < 0

        gc.disable()  # an interrupt inside a destructor would be reported and swallowed
        self.addCleanup(gc.enable)
        steps = missed = 0
        while missed < 20:  # how many steps there are depends on which thread was quicker
            steps += 1
            missed = 0 if interrupted(steps) else missed + 1
        self.assertGreater(steps, 100)
        guests = lambda: {each["name"] for each in listed.ask("list", {}, 5)["guests"]}  # noqa: E731
        self.assertTrue(wait_for(lambda: guests() == {base.name}), "guests that nobody has")
        self.assertEqual(list(psi._supervision._names), [base.name])
        self.assertTrue(wait_for(lambda: len(os.listdir("/proc/self/fd")) <= files), "descriptors that nobody has")
        self.assert_works(base)

    def test_a_storm(self) -> None:
        """^C again and again between any two bytecodes: what arrives is in order, and nothing hangs."""
        sandbox = self.spawn()
        sandbox.exec("i = 0\nwhile True: post(i); i += 1")
        gc.disable()  # an interrupt inside a destructor would be reported and swallowed
        self.addCleanup(gc.enable)
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGALRM, before)
        rng = random.Random(4)
        last, interrupts = -1, 0
        gaps: List[Tuple[int, int]] = []  # values lost, interrupts since the value before
        begun = time.monotonic()
        since = 0

        def goes_on() -> bool:
            lasted = time.monotonic() - begun
            return lasted < 5 or last <= 1000 and lasted < 60  # a busy machine takes longer for that many

        def receive_some() -> None:  # a function: see Channel._wait about loops and `try`
            nonlocal last, since
            for _ in range(2000):
                value = sandbox.recv(timeout=rng.choice([None, 5]))
                if value != last + 1:
                    gaps.append((value - last - 1, since))
                last, since = value, 0

        while goes_on():
            try:
                # Armed again each time: an interrupt in a destructor is swallowed.
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 1e-3))
                receive_some()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupts += 1
                since += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        # An interrupt can lose the one value that is on its way out of recv, as with any queue; no more.
        self.assertEqual([gap for gap in gaps if not 0 < gap[0] <= gap[1]], [])
        lost = sum(gap[0] for gap in gaps)
        self.assertLess(lost, interrupts)
        self.assertGreater(interrupts, 50)
        self.assertGreater(last, 1000)


class Events(GuestTest):
    def test_several_consumers_get_every_event(self) -> None:
        sandbox = self.spawn()

        async def consume(count: int) -> List[str]:
            names: List[str] = []
            async for _, who, event in psi.events:
                if who is sandbox:
                    names.append(str(event.details["number"]))
                    if len(names) == count:
                        break
            return names

        async def main() -> List[List[str]]:
            consumers = [asyncio.ensure_future(consume(20)) for _ in range(3)]
            await asyncio.sleep(0.1)
            for number in range(20):
                event = psi.Event("POLICY_HOTLOAD", {"number": number})
                await asyncio.get_running_loop().run_in_executor(
                    None, psi.events.log.publish, time.time(), sandbox, event
                )
            return list(await asyncio.wait_for(asyncio.gather(*consumers), 10))

        self.assertEqual(asyncio.run(main()), [[str(n) for n in range(20)]] * 3)

    def test_what_nobody_has_had_is_not_lost(self) -> None:
        sandbox = self.spawn({"mem": "64MiB"})
        with self.assertRaises(psi.MemoryExceeded):
            sandbox.call("bytearray", 200 << 20)

        async def find() -> float:
            async for ts, who, event in psi.events:
                if who is sandbox and event == "MEM_KILL":
                    return ts
            raise AssertionError

        self.assertLess(time.time() - asyncio.run(asyncio.wait_for(find(), 10)), 30)

    def test_a_flood_is_bounded_and_spares_mem_kill(self) -> None:
        sandbox = self.spawn()
        log = type(psi.events)().log
        log.publish(0, sandbox, psi.Event("MEM_KILL", {}))
        for number in range(20000):
            log.publish(number, sandbox, psi.Event("CPU_THROTTLE", {}))
        self.assertLessEqual(len(log._entries), 4096)

        async def first_two() -> List[str]:
            number, first = await log.after(log.start())
            return [first[2], (await log.after(number + 1))[1][2]]

        self.assertEqual(asyncio.run(first_two()), ["MEM_KILL", "CPU_THROTTLE"])

    def test_anext_and_cancellation(self) -> None:
        sandbox = self.spawn()

        async def main() -> psi.Event:
            with self.assertRaises(asyncio.TimeoutError):
                while True:  # what other tests have left
                    await asyncio.wait_for(psi.events.__anext__(), 0.3)
            waiting = asyncio.ensure_future(psi.events.__anext__())
            await asyncio.get_running_loop().run_in_executor(None, sandbox.update_policy, {"pids": 50})
            return (await asyncio.wait_for(waiting, 10))[2]

        event = asyncio.run(main())
        self.assertEqual(event, "POLICY_HOTLOAD")
        self.assertIsInstance(event, str)
        details: Dict[str, Any] = dict(event.details)
        self.assertIn("policy_digest", details)
