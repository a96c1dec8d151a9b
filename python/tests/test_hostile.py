"""Guests that attack their host: each has one outcome, and none makes the client wait or grow."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Optional, Tuple, Type

import pyisolate as psi

from .guests import FIND_CHANNEL, GuestTest, rss, wait_for

MIB = 1 << 20


async def _next_event() -> Tuple[float, psi.Sandbox, psi.Event]:
    return await asyncio.wait_for(psi.events.__anext__(), 10)


class HostileTest(GuestTest):
    def end_of(self, sandbox: psi.Sandbox, within: float = 5.0) -> psi.SandboxError:
        """The error that a waiting recv gets, promptly."""
        started = time.monotonic()
        while True:
            try:
                sandbox.recv(timeout=within)
            except psi.GuestError:
                continue
            except psi.SandboxError as error:
                self.assertNotIsInstance(error, psi.TimeoutError)
                self.assertLess(time.monotonic() - started, within)
                self.assertIs(error.sandbox, sandbox)
                return error

    def assert_broken(self, code: str, says: str) -> None:
        """The code, which may attack ``channel``, is a breach of the protocol: the guest is killed."""
        sandbox, bystander = self.spawn(), self.spawn()
        sandbox.exec(FIND_CHANNEL + code)
        error = self.end_of(sandbox)
        self.assertEqual(error.cause, "broken", error)
        self.assertRegex(str(error), says)
        self.assertTrue(wait_for(lambda: not sandbox.alive))
        with self.assertRaises(psi.SandboxError):
            sandbox.call("abs", 1)
        self.assert_works(bystander)


class Frames(HostileTest):
    def test_garbage(self) -> None:
        self.assert_broken("write(b'not a frame at all' * 100)", "frame of type")

    def test_a_huge_length(self) -> None:
        self.assert_broken("write(frame(20, size=0xffffffff))", "4294967295 bytes; at most")

    def test_a_huge_length_of_output(self) -> None:
        self.assert_broken("write(frame(21, size=70000))", "70000 bytes; at most 65536")

    def test_reserved_bits(self) -> None:
        self.assert_broken("write(frame(20, b'Sx', zero=1))", "reserved")
        self.assert_broken("write(frame(20, b'Sx', flags=4))", "reserved")

    def test_frames_that_only_a_host_may_send(self) -> None:
        self.assert_broken("write(frame(1, b'import os'))", "type 1")

    def test_an_answer_that_nobody_asked_for(self) -> None:
        self.assert_broken("write(frame(18, b'Sx', id=77))", "request 77")

    def test_an_answer_of_the_wrong_kind(self) -> None:
        self.assert_broken("write(frame(18, b'Sx', id=1))", "another kind")

    def test_a_second_answer(self) -> None:
        sandbox = self.spawn()
        sandbox.exec(FIND_CHANNEL + "write(frame(17, id=1))")
        sandbox.exec("pass")
        self.assertEqual(self.end_of(sandbox).cause, "broken")

    def test_malformed_json(self) -> None:
        says = "report of an exception|request 1, which is not open"  # the agent answers as well
        self.assert_broken("write(frame(19, b'{', id=1, flags=1))", says)
        self.assert_broken("write(frame(19, b'[' * 60000, id=1, flags=1))", says)
        self.assert_broken("""write(frame(19, b'{"type":1}', id=1, flags=1))""", says)
        self.assert_broken("write(frame(23, b'[]'))", "JSON object")
        self.assert_broken("write(frame(23, b'[' * 60000))", "JSON object")

    def test_half_a_frame_then_silence(self) -> None:
        sandbox = self.spawn()
        sandbox.exec(FIND_CHANNEL + "write(frame(20, b'S', size=1000000))\nimport time; time.sleep(1000)")
        started = time.monotonic()
        with self.assertRaises(psi.TimeoutError):
            sandbox.recv(timeout=0.5)
        self.assertLess(time.monotonic() - started, 1.5)

    def test_half_a_frame_then_death(self) -> None:
        sandbox = self.spawn()
        sandbox.exec(FIND_CHANNEL + "write(frame(20, b'Swhole'))\nwrite(frame(20, b'S', size=1000))\nos._exit(5)")
        self.assertEqual(sandbox.recv(timeout=5), "whole")
        error = self.end_of(sandbox)
        self.assertEqual((error.cause, "code 5" in str(error)), ("exit", True))

    def test_what_came_before_a_broken_frame_is_received(self) -> None:
        sandbox = self.spawn()
        sandbox.exec(FIND_CHANNEL + "write(frame(20, b'Sgood') + b'x' * 50)")
        self.assertEqual(sandbox.recv(timeout=5), "good")
        self.assertEqual(self.end_of(sandbox).cause, "broken")

    def test_every_watcher_is_told(self) -> None:
        """BROKER_ERROR"""
        sandbox = self.spawn()
        sandbox.exec(FIND_CHANNEL + "write(b'x' * 50)")
        self.end_of(sandbox)
        events: List[psi.Event] = []
        while not events or events[-1] != "BROKER_ERROR":
            _, who, event = asyncio.run(_next_event())
            if who is sandbox:
                events.append(event)
        self.assertIn("type 120", events[-1].details["error"])


class Values(HostileTest):
    def assert_value_refused(self, payload: str, says: str, seconds: float = 3.0) -> None:
        gc.collect()
        before = rss()
        sandbox = self.spawn({"mem": "512MiB"})
        sandbox.exec(FIND_CHANNEL + f"payload = {payload}\nwrite(frame(20, payload))")
        started = time.monotonic()
        error = self.end_of(sandbox, 30)
        self.assertEqual(error.cause, "broken", error)
        self.assertRegex(str(error), says)
        self.assertLess(time.monotonic() - started, seconds)
        gc.collect()
        self.assertLess(rss() - before, 150 * MIB)

    def test_nine_bytes_that_took_4_gib(self) -> None:
        self.assert_value_refused(r"b'\x80\x04r\xff\xff\xff\xff\x00.'", "first byte")

    def test_45_bytes_that_took_1_9_gib(self) -> None:
        import pickle

        payload = pickle.dumps(range(5), 0)
        self.assert_value_refused(repr(payload), "first byte")
        # The nearest that this encoding has: a range is a value, and stays one.
        sandbox = self.spawn()
        sandbox.exec("post(range(10**18))")
        self.assertEqual(sandbox.recv(timeout=5), range(10**18))
        sandbox.exec(FIND_CHANNEL + """write(frame(20, b'J{"$":["list",{"$":["range",0,1000000000,1]}]}'))""")
        self.assertEqual(self.end_of(sandbox).cause, "broken")

    def test_a_nested_key_that_killed_the_client(self) -> None:
        nest = """b'{"$":["tuple",[' * 40000 + b'1' + b']]}' * 40000"""
        self.assert_value_refused(f"""b'J{{"$":["dict",[[' + {nest} + b',1]]]}}'""", "deep|nested")
        nest = """b'{"$":["tuple",[' * 30 + b'1' + b']]}' * 30"""
        self.assert_value_refused(f"""b'J{{"$":["dict",[[' + {nest} + b',1]]]}}'""", "nested")

    def test_colliding_keys_that_took_12_seconds(self) -> None:
        keys = "','.join('[%d,0]' % (i * ((1 << 61) - 1)) for i in range(1, 60000)).encode()"
        self.assert_value_refused(f"""b'J{{"$":["dict",[' + {keys} + b']]}}'""", "same hash")

    def test_millions_of_empty_lists(self) -> None:
        self.assert_value_refused("b'J[' + b'[],' * 8000000 + b'[]]'", "values", 20)

    def test_deep_recursion(self) -> None:
        self.assert_value_refused("b'J' + b'[' * 1000000", "deep|nested")

    def test_an_int_of_millions_of_digits(self) -> None:
        self.assert_value_refused("b'J' + b'9' * 5000000", "digits|int")

    def test_an_unknown_class_is_an_error_and_not_the_end(self) -> None:
        sandbox = self.spawn()
        point = "import dataclasses\n@dataclasses.dataclass\nclass Point:\n  x: int\n  y: int\n"
        sandbox.exec(point + "post(Point(1, 2)); post(Point(3, 4))")
        with self.assertRaisesRegex(psi.SandboxError, "Point.*accept"):
            sandbox.recv(timeout=5)
        sandbox.accept(Point=lambda x, y: ("point", x, y))
        self.assertEqual(sandbox.recv(timeout=5), ("point", 3, 4))

    def test_text_is_shown_without_its_escapes(self) -> None:
        sandbox = self.spawn()
        sandbox.exec(r"raise ValueError('\x1b]0;owned\x07\x1b[2J\ud800')")
        with self.assertRaises(ValueError) as caught:
            sandbox.recv(timeout=5)
        error = caught.exception
        assert isinstance(error, psi.GuestError)
        self.assertFalse(set("\x1b\x07\ud800") & set(str(error) + error.traceback + str(error.__cause__)))


class Processes(HostileTest):
    def test_os_exit(self) -> None:
        sandbox = self.spawn()
        sandbox.exec("post(1); import os; os._exit(9)")
        self.assertEqual(sandbox.recv(timeout=5), 1)
        error = self.end_of(sandbox)
        self.assertEqual(error.cause, "exit")
        self.assertIn("exit code 9", str(error))

    def test_os_exit_in_a_call(self) -> None:
        with self.assertRaisesRegex(psi.SandboxError, "exit code 3"):
            self.spawn().call("os._exit", 3)

    def test_a_fatal_signal(self) -> None:
        sandbox = self.spawn()
        sandbox.exec("import ctypes; ctypes.string_at(0)")
        error = self.end_of(sandbox)
        self.assertEqual((error.cause, "SIGSEGV" in str(error)), ("signal", True), error)

    def test_a_forked_child_writes(self) -> None:
        sandbox = self.spawn()
        sandbox.exec(
            "import os, sys\npid = os.fork()\n"
            "if pid == 0:\n"
            "  print('from the child', flush=True)\n"
            "  try: post('child')\n"
            "  except BaseException as e: print(type(e).__name__, flush=True)\n"
            "  os._exit(0)\n"
            "os.waitpid(pid, 0); post('parent')",
            timeout=10,
        )
        self.assertEqual(sandbox.recv(timeout=5), "parent")
        self.assert_works(sandbox)
        self.assertTrue(wait_for(lambda: "from the child" in sandbox.stdout))

    def test_a_forked_child_falls_back_into_the_agent(self) -> None:
        sandbox = self.spawn()
        sandbox.exec("import os; pid = os.fork()\nif pid: post(os.waitpid(pid, 0)[1])\nelse: raise ValueError")
        self.assertEqual(sandbox.recv(timeout=5), 256)
        self.assert_works(sandbox)

    def test_deep_recursion_in_the_guest(self) -> None:
        sandbox = self.spawn()
        sandbox.exec("def f(): f()\nf()")
        with self.assertRaises(RecursionError):
            sandbox.recv(timeout=10)
        sandbox.exec("import sys; sys.setrecursionlimit(10**9)\nf = lambda: [f() for _ in '1']\nf()")
        self.assertIn(self.first_error(sandbox), (RecursionError, psi.SandboxError, psi.MemoryExceeded, MemoryError))

    def first_error(self, sandbox: psi.Sandbox) -> Optional[Type[BaseException]]:
        try:
            sandbox.recv(timeout=60)
        except psi.GuestError as error:
            return type(error).__mro__[3]
        except psi.SandboxError as error:
            return type(error)
        return None

    def test_closing_every_descriptor(self) -> None:
        sandbox = self.spawn()
        sandbox.exec("import os; os.closerange(0, 1024)\nwhile True: pass")
        error = self.end_of(sandbox)
        self.assertIn(error.cause, ("broken", "exit"))
        self.assertTrue(wait_for(lambda: not sandbox.alive))

    def test_exhausted_descriptors(self) -> None:
        sandbox = self.spawn()
        sandbox.exec("import os\nfds = []\nwhile True: fds.append(os.open('/dev/null', 0))")
        with self.assertRaises(OSError):
            sandbox.recv(timeout=5)
        self.assert_works(sandbox)

    def test_a_fork_bomb(self) -> None:
        sandbox = self.spawn({"pids": 20})
        sandbox.exec("import os, time\nwhile True:\n  if os.fork() == 0: time.sleep(100)")
        with self.assertRaises(BlockingIOError):
            sandbox.recv(timeout=10)
        self.assertLessEqual(sandbox.stats.pids, 20)
        sandbox.close()


class Limits(HostileTest):
    def test_memory_exceeded_at_recv(self) -> None:
        sandbox, bystander = self.spawn({"mem": "64MiB"}), self.spawn()
        sandbox.exec("x = []\nwhile True: x.append(bytearray(1 << 20))")
        with self.assertRaises(psi.MemoryExceeded) as caught:
            sandbox.recv(timeout=30)
        error = caught.exception
        self.assertIs(error.sandbox, sandbox)
        self.assertEqual((error.cause, error.limit), ("oom", 64 << 20))
        assert error.observed is not None
        self.assertGreater(error.observed, 60 << 20)
        self.assertIn("64 MiB", str(error))
        self.assert_works(bystander)
        self.assertNotIsInstance(error, MemoryError)

    def test_memory_exceeded_at_call_with_the_event_beside_it(self) -> None:
        """MEM_KILL"""
        sandbox = self.spawn({"mem": "64MiB"})
        with self.assertRaises(psi.MemoryExceeded):
            sandbox.call("bytearray.__mul__", bytearray(1 << 20), 200)
        while True:
            ts, who, event = asyncio.run(_next_event())
            if who is sandbox and event == "MEM_KILL":
                break
        self.assertLess(abs(ts - time.time()), 60)

    def test_cpu_exceeded(self) -> None:
        sandbox = self.spawn({"cpu_ms": 500})
        sandbox.exec("while True: pass")
        with self.assertRaises(psi.CPUExceeded) as caught:
            sandbox.recv(timeout=30)
        error = caught.exception
        self.assertEqual((error.cause, error.limit), ("cpu", 500))
        assert error.observed is not None
        self.assertGreaterEqual(error.observed, 500)

    def test_wall(self) -> None:
        sandbox = self.spawn({"wall_ms": 700})
        with self.assertRaises(psi.SandboxError) as caught:
            sandbox.recv(timeout=30)
        self.assertEqual(caught.exception.cause, "wall")
        self.assertIn("700 ms", str(caught.exception))

    def test_a_guests_own_errors_are_never_ours(self) -> None:
        sandbox = self.spawn()
        for name in ("MemoryError", "TimeoutError"):
            sandbox.exec(f"raise {name}('mine')")
            with self.assertRaises(psi.GuestError) as caught:
                sandbox.recv(timeout=5)
            self.assertNotIsInstance(caught.exception, (psi.TimeoutError, psi.MemoryExceeded))
            self.assertEqual(caught.exception.type_name, name)
        for name in ("SystemExit", "KeyboardInterrupt", "GeneratorExit", "StopIteration"):
            sandbox.exec(f"raise {name}('mine')")
            with self.assertRaises(psi.GuestError) as caught:
                sandbox.recv(timeout=5)
            self.assertIs(type(caught.exception), psi.GuestError)

    def test_cpu_throttle_event(self) -> None:
        """CPU_THROTTLE"""
        sandbox = self.spawn({"cpu": 0.1})
        sandbox.exec("import time; end = time.monotonic() + 3\nwhile time.monotonic() < end: pass", timeout=30)
        while True:
            _, who, event = asyncio.run(_next_event())
            if who is sandbox:
                self.assertEqual(event, "CPU_THROTTLE")
                break
