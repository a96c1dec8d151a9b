"""API.md, line by line: each test quotes the line that it holds to."""

from __future__ import annotations

import asyncio
import collections
import datetime
import decimal
import fractions
import http.server
import inspect
import os
import pathlib
import signal
import tempfile
import threading
import time
import unittest
import uuid
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pyisolate as psi
from pyisolate.policy import Policy

from .guests import GuestTest, wait_for


class _Quiet(http.server.BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class SpawningAndLifecycle(GuestTest):
    def test_psi_spawn_name_policy_allowed_imports(self) -> None:
        """`psi.spawn(name:str, policy:str|dict=None, allowed_imports:list[str]|None=None) → Sandbox`"""
        parameters = inspect.signature(psi.spawn).parameters
        self.assertEqual(list(parameters), ["name", "policy", "allowed_imports", "engine"])
        self.assertIs(parameters["engine"].kind, inspect.Parameter.KEYWORD_ONLY)  # beyond the interface
        self.assertIsNone(parameters["policy"].default)
        self.assertIsNone(parameters["allowed_imports"].default)
        sandbox = psi.spawn("api-spawn", {"mem": "128MiB"}, ["math"])
        self.addCleanup(sandbox.close)
        self.assertIsInstance(sandbox, psi.Sandbox)
        self.assertEqual(sandbox.limits["mem"], 128 << 20)

    def test_spawn_attaches_ebpf(self) -> None:
        """Create sandbox thread, attach eBPF, return handle with module whitelist."""
        sandbox = self.spawn(allowed_imports=["math"])
        self.assertTrue(any("eBPF" in each["by"] for each in sandbox.enforced), sandbox.enforced)
        sandbox.exec("import math; post(math.pi)")
        self.assertAlmostEqual(sandbox.recv(timeout=5), 3.14159265)
        sandbox.exec("import socket")
        with self.assertRaisesRegex(ImportError, "socket.*math"):
            sandbox.recv(timeout=5)

    def test_policy_as_name_file_dict_policy_and_none(self) -> None:
        """policy:str|dict=None"""
        with tempfile.TemporaryDirectory() as directory:
            yaml, json = Path(directory) / "a.yaml", Path(directory) / "b.json"
            yaml.write_text("mem: 64MiB\npids: 9\n")
            json.write_text('{"mem": "64MiB", "pids": 9}')
            document: Dict[str, Any] = {"mem": 64 << 20, "pids": 9}
            forms: List[Any] = [str(yaml), json, document, Policy(mem="64MiB", pids=9)]
            boxes = [self.spawn(policy) for policy in forms]
        self.assertEqual({(each.limits["mem"], each.limits["pids"]) for each in boxes}, {(64 << 20, 9)})
        self.assertEqual(len({each.policy_digest for each in boxes}), 1)
        self.assertEqual(self.spawn(None).policy_digest, self.spawn("defaults").policy_digest)

    def test_sandbox_close_timeout_is_0_2(self) -> None:
        """`sandbox.close(timeout=0.2)`"""
        self.assertEqual(inspect.signature(psi.Sandbox.close).parameters["timeout"].default, 0.2)

    def test_close_is_a_graceful_stop(self) -> None:
        """Graceful stop → SIGTERM"""
        with tempfile.TemporaryDirectory() as directory:
            os.chmod(directory, 0o755)
            sandbox = self.spawn(Policy().allow_fs(directory, mode="rw"))
            sandbox.exec(f"import atexit; atexit.register(lambda: open('{directory}/bye', 'w').write('bye'))", timeout=5)
            sandbox.close(timeout=10)
            self.assertEqual((Path(directory) / "bye").read_text(), "bye")

    def test_close_kills_after_timeout(self) -> None:
        """force‑kill after timeout."""
        sandbox = self.spawn()
        sandbox.exec("post(1); sum(range(10**15))")  # no handler runs in the middle of that
        self.assertEqual(sandbox.recv(timeout=5), 1)
        time.sleep(0.3)
        started = time.monotonic()
        sandbox.close(timeout=0.3)
        self.assertGreater(time.monotonic() - started, 0.25)
        self.assertLess(time.monotonic() - started, 2.5)
        with self.assertRaisesRegex(psi.SandboxError, "closed"):
            sandbox.recv()

    def test_with_psi_spawn_closes_on_exit(self) -> None:
        """`with psi.spawn(name, policy)` | Context manager form; sandbox closes on exit."""
        with psi.spawn("api-with", "defaults") as sandbox:
            self.assert_works(sandbox)
            self.assertTrue(sandbox.alive)
        self.assertFalse(sandbox.alive)
        with self.assertRaises(psi.SandboxError) as caught:
            sandbox.exec("pass")
        self.assertEqual(caught.exception.cause, "closed")

    def test_psi_list_active(self) -> None:
        """`psi.list_active() → Dict[str, Sandbox]`"""
        self.assertEqual(psi.list_active(), {})
        one, two = self.spawn(name="api-one"), self.spawn(name="api-two")
        self.assertEqual(psi.list_active(), {"api-one": one, "api-two": two})
        one.close()
        self.assertEqual(psi.list_active(), {"api-two": two})
        two.exec("import os; os._exit(0)")
        self.assertTrue(wait_for(lambda: not psi.list_active()))


class ExecutingCode(GuestTest):
    def test_the_first_example(self) -> None:
        """sb = psi.spawn("guest42", policy="defaults") … result = sb.recv(timeout=0.1)      # 1.4142135623"""
        for last in (False,) * 9 + (True,):  # an emulated machine may be slow, with others on it
            sb = psi.spawn("guest42", policy="defaults")
            self.addCleanup(sb.close)
            sb.exec("from math import sqrt; post(sqrt(2))")
            try:
                result = sb.recv(timeout=0.1)      # 1.4142135623
                break
            except psi.TimeoutError:
                if last:
                    raise
                sb.close()
        self.assertEqual(f"{result:.10f}", "1.4142135624")

    def test_exec_runs_source_in_guest(self) -> None:
        """`exec(src)` | Run source in guest."""
        sandbox = self.spawn()
        sandbox.exec("import os; x = 1")
        sandbox.exec("x += 1; post((x, os.getpid()))")
        self.assertEqual(sandbox.recv(timeout=5), (2, 1))

    def test_exceptions_must_be_retrieved_with_recv(self) -> None:
        """Exceptions are posted to the outbox and must be retrieved with `recv()`."""
        sandbox = self.spawn()
        sandbox.exec("post(1); 1/0")
        sandbox.exec("post(2)", timeout=5)  # waits, and does not raise what is for recv
        self.assertEqual(sandbox.recv(timeout=5), 1)
        with self.assertRaises(ZeroDivisionError) as caught:
            sandbox.recv(timeout=5)
        self.assertIsInstance(caught.exception, psi.GuestError)
        self.assertEqual(sandbox.recv(timeout=5), 2)

    def test_call_dotted_func(self) -> None:
        """`call(func, *args, **kw)` | Import‑free RPC: call dotted `func` inside guest."""
        sandbox = self.spawn()
        self.assertEqual(sandbox.call("math.hypot", 3, 4), 5.0)
        self.assertEqual(sandbox.call("json.dumps", {"b": 1, "a": [None]}, sort_keys=True), '{"a": [null], "b": 1}')
        sandbox.exec("class A:\n  @staticmethod\n  def f(*a, func, **kw): return a, func, kw")
        self.assertEqual(sandbox.call("A.f", 1, func=2, x=3), ((1,), 2, {"x": 3}))
        with self.assertRaisesRegex(ValueError, "invalid literal"):
            sandbox.call("int", "x")

    def test_recv_is_a_blocking_receive(self) -> None:
        """`recv(timeout=None)` | Blocking receive from guest channel."""
        self.assertIsNone(inspect.signature(psi.Sandbox.recv).parameters["timeout"].default)
        sandbox = self.spawn()
        started = time.monotonic()
        with self.assertRaises(psi.TimeoutError):
            sandbox.recv(timeout=0.2)
        self.assertTrue(0.2 <= time.monotonic() - started < 1)
        sandbox.exec("import time; time.sleep(0.5); post('late')")
        self.assertEqual(sandbox.recv(), "late")

    def test_post_sends_objects_to_the_supervisor(self) -> None:
        """`post(obj)` *(guest side)* | Send picklable object to supervisor."""
        sandbox = self.spawn()
        values = [
            None, True, 1, -(1 << 200), 1.5, float("inf"), 2j, "text\ud800", b"\0\xff", bytearray(b"x"), [1, [2]], (1, (2,)),
            {"a": 1, 2: (3,)}, {1, 2}, frozenset({3}), range(3), slice(1, 2), ValueError("v", 1),
        ]  # fmt: skip
        for value in values:
            with self.subTest(value=value):
                sandbox.exec(f"post({value!r})".replace("inf", "float('inf')"))
                back = sandbox.recv(timeout=5)
                self.assertIs(type(back), type(value))
                self.assertEqual(repr(back), repr(value))
        sandbox.exec("import datetime, decimal, fractions, uuid, pathlib, collections")
        self.assertTrue(all((collections, datetime, decimal, fractions, pathlib, uuid)))  # for eval
        for code in (
            "datetime.datetime(2020, 1, 2, 3, 4, 5, 6, datetime.timezone.utc)", "datetime.timedelta(1, 2, 3)",
            "decimal.Decimal('1.10')", "fractions.Fraction(1, 3)", "uuid.UUID(int=7)", "pathlib.PurePosixPath('/a/b')",
            "collections.OrderedDict(a=1)", "collections.Counter('aab')", "collections.deque([1, 2], 5)",
        ):  # fmt: skip
            with self.subTest(value=code):
                sandbox.exec(f"post({code})")
                back, value = sandbox.recv(timeout=5), eval(code)
                self.assertEqual((type(back), back), (type(value), value))

    def test_post_of_what_cannot_cross(self) -> None:
        """A guest learns at once what it may not post, and goes on."""
        sandbox = self.spawn()
        sandbox.exec("post(lambda: 1)")
        with self.assertRaisesRegex(TypeError, "function cannot cross"):
            sandbox.recv(timeout=60)
        self.assert_works(sandbox)


class PolicyHelpers(GuestTest):
    def test_the_policy_example(self) -> None:
        """cust = (Policy(mem="256MiB") .allow_fs("/srv/data/*.parquet") .allow_tcp("127.0.0.1:9200") …"""
        with tempfile.TemporaryDirectory() as directory:
            os.chmod(directory, 0o755)
            for name in ("a.parquet", "b.txt"):
                (Path(directory) / name).write_text(name)
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Quiet)
            self.addCleanup(server.server_close)
            self.addCleanup(server.shutdown)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            port = server.server_address[1]
            pattern = f"{directory}/*.parquet"
            cust = (
                Policy(mem="256MiB")
                .allow_fs(pattern)
                .allow_tcp(f"127.0.0.1:{port}")
                .allow_import("socket")
            )
            sb = self.spawn(policy=cust)
            sb.exec(f"post(open('{directory}/a.parquet').read())")
            self.assertEqual(sb.recv(timeout=5), "a.parquet")
            sb.exec(f"open('{directory}/b.txt')")
            with self.assertRaises(OSError):
                sb.recv(timeout=5)
            sb.exec(f"open('{directory}/a.parquet', 'w')")
            with self.assertRaises(OSError):
                sb.recv(timeout=5)
            sb.exec(f"import socket; s = socket.create_connection(('127.0.0.1', {port}), 5); s.sendall(b'BAD\\r\\n\\r\\n')")
            sb.exec("post(s.recv(4096))")
            self.assertIn(b"400", sb.recv(timeout=5))
            sb.exec(f"socket.create_connection(('127.0.0.1', {port % 65535 + 1}), 5)")
            with self.assertRaises(OSError):
                sb.recv(timeout=5)
            sb.exec("import json")
            with self.assertRaises(ImportError):
                sb.recv(timeout=5)

    def test_lists_of_accumulated_permissions(self) -> None:
        """cust.fs  # ["/srv/data/*.parquet"]   cust.tcp # ["127.0.0.1:9200"]"""
        cust = (Policy(mem="256MiB")
                .allow_fs("/srv/data/*.parquet")
                .allow_tcp("127.0.0.1:9200")
                .allow_import("math"))  # fmt: skip
        self.assertEqual(cust.fs, ["/srv/data/*.parquet"])
        self.assertEqual(cust.tcp, ["127.0.0.1:9200"])


class MetricsAndEvents(GuestTest):
    def test_sb_stats_cpu_ms(self) -> None:
        """`sb.stats.cpu_ms` | CPU consumed since launch."""
        sandbox = self.spawn()
        before = sandbox.stats.cpu_ms
        sandbox.exec("import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass", timeout=30)
        used = sandbox.stats.cpu_ms - before
        self.assertTrue(250 < used < 1500, used)

    def test_sb_stats_mem_bytes(self) -> None:
        """`sb.stats.mem_bytes` | Resident set size (live)."""
        sandbox = self.spawn()
        before = sandbox.stats.mem_bytes
        sandbox.exec("x = b'x' * (50 << 20)", timeout=10)
        grown = sandbox.stats.mem_bytes - before
        self.assertTrue(45 << 20 < grown < 60 << 20, grown)
        sandbox.exec("del x", timeout=10)
        self.assertLess(sandbox.stats.mem_bytes, before + (10 << 20))

    def test_psi_events(self) -> None:
        """`psi.events` | Async iterator of `(ts, sandbox, event)` tuples."""

        async def first() -> Tuple[float, psi.Sandbox, psi.Event]:
            async for ts, sandbox, event in psi.events:
                if sandbox is watched and event == "POLICY_HOTLOAD":  # a slow machine throttles guests too
                    return ts, sandbox, event
            raise AssertionError("the events ended")

        watched = self.spawn()
        before = time.time()
        watched.update_policy({"mem": "200MiB"})
        ts, sandbox, event = asyncio.run(asyncio.wait_for(first(), 10))
        self.assertIs(sandbox, watched)
        self.assertTrue(before - 0.1 <= ts <= time.time() + 0.1)
        self.assertEqual(event, "POLICY_HOTLOAD")
        self.assertIn("policy_digest", event.details)


class ExceptionsHierarchy(unittest.TestCase):
    def test_all_user_facing_errors_inherit_from_sandbox_error(self) -> None:
        """All user‑facing errors inherit from `SandboxError`."""
        self.assertEqual(psi.SandboxError.__bases__, (Exception,))
        for error in (psi.PolicyError, psi.TimeoutError, psi.MemoryExceeded, psi.CPUExceeded, psi.GuestError):
            self.assertTrue(issubclass(error, psi.SandboxError), error)
        self.assertTrue(issubclass(psi.TimeoutError, TimeoutError))

    def test_whatever_a_caller_gets_wrong_is_a_sandbox_error(self) -> None:
        mistakes: List[Callable[[], psi.Sandbox]] = [
            lambda: psi.spawn(""),
            lambda: psi.spawn("a/b"),
            lambda: psi.spawn("x", "no-such-policy"),
            lambda: psi.spawn("x", "/no/such/file.yaml"),
            lambda: psi.spawn("x", {"memory": 1}),
            lambda: psi.spawn("x", {"fs": ["relative"]}),
            lambda: psi.spawn("x", {"mem": "12 parsecs"}),
            lambda: psi.spawn("x", {"fs": ["/proc"]}),
            lambda: psi.spawn("x", {"tcp": ["localhost"]}),
            lambda: psi.spawn("x", None, ["not a name"]),
        ]
        for wrong in mistakes:
            with self.assertRaises(psi.SandboxError) as caught:
                wrong()
            self.assertGreater(len(str(caught.exception)), 20)
        self.assertEqual(psi.list_active(), {})


if __name__ == "__main__":
    signal.alarm(300)
    unittest.main()
