"""The lives of sandboxes and supervisors: ends of all kinds, forks, shared sockets, what is left behind."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import unittest
from pathlib import Path
from typing import Dict, List, Optional

import pyisolate as psi
from pyisolate import _locate

from .guests import GuestTest, cgroups_of, wait_for

HERE = Path(__file__).resolve().parent.parent


def run(code: str, environ: Optional[Dict[str, str]] = None, uid: int = 0) -> "subprocess.CompletedProcess[str]":
    """A Python program with a pyisolate of its own."""
    return subprocess.run(
        ["/usr/bin/python3" if uid else sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1", **(environ or {})},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=120, cwd="/",
        preexec_fn=(lambda: _become(uid)) if uid else None,
    )  # fmt: skip


def _become(uid: int) -> None:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)


def supervisors() -> List[int]:
    """The psi-shim processes that this process started."""
    return [each.pid for each in psi._supervision._processes if each.poll() is None]


class Sandboxes(GuestTest):
    def test_names(self) -> None:
        for name in ("a", "Grüße-7", "x" * 64, "a.b_c-d", "数"):
            with psi.spawn(name) as sandbox:
                self.assertEqual(str(sandbox), name)
        for name in ("", "x" * 65, "a/b", "a b", "..\n", "a\0"):
            with self.assertRaisesRegex(psi.SandboxError, "1 to 64"):
                psi.spawn(name)

    def test_a_name_is_unique_among_the_active(self) -> None:
        sandbox = self.spawn(name="twice")
        with self.assertRaisesRegex(psi.SandboxError, "'twice' is active"):
            psi.spawn("twice")
        sandbox.close()
        self.spawn(name="twice")

    def test_a_dropped_handle_is_still_listed(self) -> None:
        psi.spawn("dropped")
        found = psi.list_active()["dropped"]
        self.addCleanup(found.close)
        self.assert_works(found)

    def test_close_twice_and_after_the_end(self) -> None:
        sandbox = self.spawn()
        sandbox.close()
        sandbox.close()
        ended = self.spawn()
        ended.exec("import os; os._exit(0)")
        self.assertTrue(wait_for(lambda: not ended.alive))
        ended.close()

    def test_kill(self) -> None:
        sandbox = self.spawn()
        sandbox.exec("while True: pass")
        started = time.monotonic()
        sandbox.kill()
        self.assertLess(time.monotonic() - started, 2)
        self.assertFalse(sandbox.alive)

    def test_close_wakes_those_who_wait(self) -> None:
        sandbox = self.spawn()
        ends: List[psi.SandboxError] = []

        def wait() -> None:
            try:
                sandbox.recv()
            except psi.SandboxError as error:
                ends.append(error)

        threads = [threading.Thread(target=wait) for _ in range(3)]
        for each in threads:
            each.start()
        time.sleep(0.2)
        sandbox.close()
        for each in threads:
            each.join(5)
        self.assertEqual([each.cause for each in ends], ["closed"] * 3)

    def test_what_was_posted_before_the_end_is_received(self) -> None:
        sandbox = self.spawn()
        sandbox.exec("for i in range(100): post(i)\nimport os; os._exit(4)")
        self.assertTrue(wait_for(lambda: not sandbox.alive))
        self.assertEqual([sandbox.recv(timeout=5) for _ in range(100)], list(range(100)))
        with self.assertRaisesRegex(psi.SandboxError, "exit code 4"):
            sandbox.recv(timeout=5)

    def test_interrupt(self) -> None:
        sandbox = self.spawn()
        sandbox.exec("post(1)\nwhile True: pass")
        sandbox.recv(timeout=5)
        sandbox.interrupt()
        with self.assertRaises(psi.GuestError) as caught:
            sandbox.recv(timeout=5)
        self.assertEqual(caught.exception.type_name, "KeyboardInterrupt")
        self.assert_works(sandbox)

    def test_exec_with_a_timeout_interrupts(self) -> None:
        sandbox = self.spawn()
        sandbox.exec("x = 0")
        with self.assertRaisesRegex(psi.TimeoutError, "within 0.3 s"):
            sandbox.exec("while True: x += 1", timeout=0.3)
        self.assert_works(sandbox)  # and the interrupt is not an item of recv
        with self.assertRaises(psi.TimeoutError):
            sandbox.recv(timeout=0)

    def test_exec_with_callbacks(self) -> None:
        sandbox = self.spawn()
        out: List[str] = []
        err: List[str] = []
        sandbox.exec("import sys\nprint('ä' * 70000, end='')\nprint('no', file=sys.stderr)", None, out.append, err.append)
        self.assertEqual(("".join(out), "".join(err)), ("ä" * 70000, "no\n"))
        self.assertTrue(sandbox.stdout.endswith("ää"))
        self.assertEqual(sandbox.stderr, "no\n")

    def test_a_callback_that_raises(self) -> None:
        sandbox = self.spawn()
        callbacks: Dict[str, object] = {}
        with self.assertRaises(KeyError):
            sandbox.exec("while True: print('x')", on_stdout=callbacks.__getitem__)
        self.assert_works(sandbox)

    def test_post_to_the_guest(self) -> None:
        sandbox = self.spawn()
        sandbox.exec("while True: post(recv())")
        for value in (1, {"a": (1, 2)}, b"x" * (5 << 20)):
            sandbox.post(value)
            self.assertEqual(sandbox.recv(timeout=10), value)
        with self.assertRaisesRegex(psi.SandboxError, "cannot be sent"):
            sandbox.post(object())
        with self.assertRaisesRegex(psi.SandboxError, "message"):
            sandbox.post(b"x" * (65 << 20))

    def test_thousands_of_execs_that_nobody_waits_for(self) -> None:
        sandbox = self.spawn()
        sandbox.exec("n = 0")
        for _ in range(5000):
            sandbox.exec("n += 1")
        sandbox.exec("def get(): return n")
        self.assertEqual(sandbox.call("get"), 5000)

    def test_a_handle_cannot_be_pickled_but_its_errors_can(self) -> None:
        sandbox = self.spawn()
        with self.assertRaisesRegex(TypeError, "cannot be pickled"):
            pickle.dumps(sandbox)
        with self.assertRaises(psi.TimeoutError) as caught:
            sandbox.recv(timeout=0)
        self.assertIsInstance(pickle.loads(pickle.dumps(caught.exception)), psi.TimeoutError)
        sandbox.exec("{}['k']")
        with self.assertRaises(KeyError) as key:
            sandbox.recv(timeout=5)
        self.assertIsInstance(pickle.loads(pickle.dumps(key.exception)), KeyError)

    def test_nothing_is_left_in_the_client(self) -> None:
        self.spawn().close()
        before = set(os.listdir("/proc/self/fd"))
        threads = threading.active_count()
        for _ in range(10):
            sandbox = self.spawn()
            sandbox.exec("post(1)")
            sandbox.close()
        ended = self.spawn()
        ended.exec("import os; os._exit(0)")
        self.assertTrue(wait_for(lambda: not ended.alive))
        ended.close()
        self.assertEqual(set(os.listdir("/proc/self/fd")), before)
        self.assertEqual(threading.active_count(), threads)


class Supervisors(GuestTest):
    def test_its_death_ends_its_sandboxes_and_the_next_spawn_starts_another(self) -> None:
        sandbox, waiting = self.spawn(), self.spawn()
        (pid,) = supervisors()
        ends: List[Optional[str]] = []

        def wait() -> None:
            try:
                waiting.recv()
            except psi.SandboxError as error:
                ends.append(error.cause)

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
        thread.join(5)
        self.assertEqual(ends, ["supervisor"])
        with self.assertRaises(psi.SandboxError) as caught:
            sandbox.call("abs", 1)
        self.assertEqual(caught.exception.cause, "supervisor")
        sandbox.close()
        self.assert_works(self.spawn())
        self.assertEqual(psi.list_active().keys() & {sandbox.name, waiting.name}, set())

    def test_a_spawn_right_after_its_death(self) -> None:
        self.spawn()
        (pid,) = supervisors()
        os.kill(pid, signal.SIGKILL)
        self.assert_works(self.spawn())

    def test_it_ends_with_its_client(self) -> None:
        for end in ("", "os._exit(0)", "os.kill(os.getpid(), 9)"):
            with self.subTest(end=end):
                done = run(
                    f"""
                    import os, pyisolate as psi
                    sb = psi.spawn("orphan"); sb.exec("while True: pass")
                    print(sb.id, psi._supervision._processes[0].pid, flush=True)
                    {end}
                    """
                )
                guest, pid = done.stdout.split()
                self.assertTrue(wait_for(lambda: not os.path.exists(f"/proc/{pid}/exe")), done.stderr)
                self.assertTrue(wait_for(lambda: not cgroups_of({guest})))

    def test_control_c_at_the_terminal_is_not_for_the_supervisor(self) -> None:
        self.spawn()
        (pid,) = supervisors()
        self.assertNotEqual(os.getpgid(pid), os.getpgid(0))

    def test_what_is_missing_is_said_with_what_to_run(self) -> None:
        for environ, says in (
            ({"PSI_SHIM": "/no/such/shim"}, "PSI_SHIM=/no/such/shim"),
            ({"PSI_ROOTFS": "/no/such/root"}, "psi-runtime rootfs build -o /no/such/root"),
            ({"PSI_SOCKET": "/no/such/socket"}, "psi-shim serve --socket /no/such/socket"),
        ):
            done = run(
                "import pyisolate as psi\ntry: psi.spawn('x')\nexcept psi.SandboxError as e: print(e)", environ
            )
            self.assertIn(says, done.stdout, done.stderr)

    def test_where_things_are_looked_for(self) -> None:
        self.assertEqual(_locate.shim({"PSI_SHIM": sys.executable}), sys.executable)
        with tempfile.TemporaryDirectory() as directory:
            program = Path(directory) / "psi-shim"
            program.write_text("#!/bin/sh\n")
            program.chmod(0o755)
            places = [_locate.package() / "psi-shim", _locate.package() / "bin" / "psi-shim"]
            if not any(map(Path.exists, places)) and not (HERE.parent / "bin" / "psi-shim").exists():
                self.assertEqual(_locate.shim({"PATH": directory}), str(program))
            mark = Path(directory) / "usr" / "lib" / "psi" / "rootfs.json"
            mark.parent.mkdir(parents=True)
            mark.write_text("{}")
            self.assertEqual(_locate.rootfs({"PSI_ROOTFS": directory}), directory)
        self.assertEqual(_locate.shared_socket({"PSI_SOCKET": "/x"}, True), "/x")
        self.assertIsNone(_locate.shared_socket({}, True))


class Forks(GuestTest):
    def in_child(self, code: str) -> str:
        done = run(
            f"""
            import os, sys, pyisolate as psi
            sb = psi.spawn("parent")
            sb.exec("post(1)")
            pid = os.fork()
            if pid == 0:
                try:
            {textwrap.indent(textwrap.dedent(code), " " * 20)}
                finally:
                    sys.stdout.flush(); os._exit(0)
            os.waitpid(pid, 0)
            print("parent", sb.recv(timeout=5), sb.call("abs", -2), sorted(psi.list_active()))
            """
        )
        self.assertEqual(done.stderr, "")
        self.assertIn("parent 1 2 ['parent']", done.stdout)
        return done.stdout

    def test_inherited_handles_are_dead_in_a_child(self) -> None:
        said = self.in_child(
            """
            for use in (sb.recv, sb.close, lambda: sb.exec("1"), lambda: sb.stats, lambda: sb.post(1), lambda: sb.call("f")):
                try: use(); print("fine")
                except psi.SandboxError as e: print(e.cause)
            print(psi.list_active())
            """
        )
        self.assertEqual(said.split("\n")[:7], ["forked", "fine"] + ["forked"] * 4 + ["{}"])

    def test_a_child_can_spawn(self) -> None:
        said = self.in_child(
            """
            with psi.spawn("parent") as mine:
                print("child", mine.call("abs", -1), sorted(psi.list_active()))
            psi._supervision.leave()
            """
        )
        self.assertIn("child 1 ['parent']", said)

    def test_a_child_that_lives_on_does_not_keep_the_guests(self) -> None:
        done = run(
            """
            import os, time, pyisolate as psi
            sb = psi.spawn("parent")
            print(sb.id, flush=True)
            if os.fork() == 0:
                os.close(1); os.close(2); time.sleep(3); os._exit(0)
            os._exit(0)
            """
        )
        self.assertTrue(wait_for(lambda: not cgroups_of({done.stdout.strip()}), 2.5))


class Shared(GuestTest):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory(prefix="psi-shared-")
        self.addCleanup(directory.cleanup)
        os.chmod(directory.name, 0o755)
        self.path = os.path.join(directory.name, "psi.sock")
        self.log = open(os.path.join(directory.name, "log"), "w+")
        self.addCleanup(self.log.close)
        self.process = subprocess.Popen(
            [_locate.shim(os.environ), "serve", "--socket", self.path, "--group", "nogroup",
             "--rootfs", _locate.rootfs(os.environ)],
            stdin=subprocess.DEVNULL, stderr=self.log, start_new_session=True,
        )  # fmt: skip
        self.addCleanup(self.stop)
        # The socket is there with mode 0 before its group and mode are set.
        ready = wait_for(lambda: os.path.exists(self.path) and os.stat(self.path).st_mode & 0o777 != 0)
        self.assertTrue(ready, Path(self.log.name).read_text())

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)

    def test_connect(self) -> None:
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o660)
        own = self.spawn()
        self.addCleanup(psi.connect, None)
        psi.connect(self.path)
        shared = self.spawn()
        self.assertIsNot(own.connection, shared.connection)
        self.assert_works(own)
        self.assert_works(shared)
        self.process.kill()
        with self.assertRaises(psi.SandboxError) as caught:
            shared.recv(timeout=10)
        self.assertEqual(caught.exception.cause, "supervisor")
        self.assert_works(own)
        with self.assertRaisesRegex(psi.SandboxError, "the supervisor at /"):
            psi.spawn("late")

    def test_psi_socket_from_a_user_who_is_not_root(self) -> None:
        os.chown(self.path, -1, 65534)
        done = run(
            """
            import os, pyisolate as psi
            with psi.spawn("user") as sb:
                print(os.getuid(), sb.call("abs", -3))
            """,
            {"PSI_SOCKET": self.path, "HOME": "/"},
            uid=65534,
        )
        self.assertEqual(done.stdout, "65534 3\n", done.stderr)

    def test_without_a_socket_such_a_user_is_told_so(self) -> None:
        if os.access(_locate.DEFAULT_SOCKET, os.F_OK):
            raise AssertionError(f"a shared supervisor runs at {_locate.DEFAULT_SOCKET}: stop it for this test")
        done = run(
            "import pyisolate as psi\ntry: psi.spawn('x')\nexcept psi.SandboxError as e: print(e)", uid=65534
        )
        self.assertRegex(done.stdout, "takes root.*psi-shim serve --socket /run/psi/psi.sock.*PSI_SOCKET")


if __name__ == "__main__":
    unittest.main()
